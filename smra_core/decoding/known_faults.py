"""Library combinations known to misbehave, and how they are told."""

import torch

_CUDNN_SOUND_AGAIN = 91500


def conv3d_wastes_memory(dtype: torch.dtype) -> bool:
    """torch 2.9 with cuDNN before 9.15 computes half-precision conv3d in three times the memory.

    Source: github:pytorch/pytorch issue 166643.
    """
    cudnn = torch.backends.cudnn.version()
    half = dtype in (torch.bfloat16, torch.float16)
    return half and torch.__version__.startswith("2.9.") and cudnn is not None and cudnn < _CUDNN_SOUND_AGAIN
