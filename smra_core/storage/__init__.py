"""Safe files: atomic writes, weight files of others, caches, content hashes."""
