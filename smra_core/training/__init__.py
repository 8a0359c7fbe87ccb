"""SuRA and MoRA, the training loop, runs on disk, and what a training step costs."""
