"""The nodes of the pack; the only code that knows ComfyUI."""

from .load_miniature import LoadMiniature
from .sparse_lora_loader import SparseLoRALoader
from .t_point_scheduler import TPointScheduler

NODE_CLASS_MAPPINGS = {
    "SMRATPointScheduler": TPointScheduler,
    "SMRASparseLoRALoader": SparseLoRALoader,
    "SMRALoadMiniature": LoadMiniature,
}
