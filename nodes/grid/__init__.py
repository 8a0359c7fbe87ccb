"""Parts of SMRA Compare Grid."""
