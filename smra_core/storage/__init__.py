"""Safe files: atomic writes, weight files from any source, caches, content hashes."""
