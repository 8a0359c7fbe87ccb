"""The nodes around training, by their final ids."""

TRAINING_NODES = {}
