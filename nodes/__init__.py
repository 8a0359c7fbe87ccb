"""The nodes of the pack; the only code that knows ComfyUI."""

from .training_nodes import TRAINING_NODES

NODE_CLASS_MAPPINGS = {**TRAINING_NODES}
