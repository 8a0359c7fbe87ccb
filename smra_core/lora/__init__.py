"""LoRA pairs: into which linears (plan), how strong at which noise level (schedule), and their files."""
