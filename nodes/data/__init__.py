"""Parts of the nodes that read data."""
