"""The video VAE's layers on a CPU in float32, where the plain conv3d of narrow layers is very slow.

Measured with torch 2.11 on one busy core, GFLOP/s of 3x3x3 taps as a conv3d and as a conv2d over stacked time
taps: 16 channels 6 and 27, 32 channels 12 and 62, 64 channels 22 and 46.
"""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

NARROW = 128
"""Channels below which a conv3d is rewritten."""


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, borders: tuple[int, int] = (0, 0)) -> Tensor:
    """conv3d of stride 1 that pads height and width by `borders`, whichever way is fast for this input."""
    if is_slow_as_conv3d(x, weight):
        return conv2d_over_stacked_frames(x, weight, bias, borders)
    return F.conv3d(x, weight, bias, padding=(0, *borders))


def is_slow_as_conv3d(x: Tensor, weight: Tensor) -> bool:
    """Whether a conv2d over stacked time taps is better: fast on a CPU, sparing on some GPUs."""
    if weight.shape[2] == 1:
        return False
    if x.device.type == "cuda":
        return conv3d_wastes_memory(x.dtype)
    return x.device.type == "cpu" and x.dtype == torch.float32 and min(weight.shape[:2]) < NARROW


def conv2d_over_stacked_frames(
    x: Tensor, weight: Tensor, bias: Tensor | None, borders: tuple[int, int] = (0, 0)
) -> Tensor:
    """The same as a conv2d whose channels are the time taps of all channels."""
    taps = x.unfold(2, weight.shape[2], 1)
    images = rearrange(taps, "b c t h w tap -> (b t) (c tap) h w")
    frames = F.conv2d(images, weight.flatten(1, 2), bias, padding=borders)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(x))


def with_fast_layers(net: nn.Module) -> nn.Module:
    """Let the net's own convolutions and norms take the fast way; weights and names stay as they are.

    Results agree to float32's rounding.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv3d) and module.stride == (1, 1, 1) and module.padding == (0, 0, 0):
            # torch's own seam between a convolution's padding and its product.
            module._conv_forward = conv3d
        elif type(module).__name__ == "WanRMS_norm":  # by name: ComfyUI does without diffusers
            module.forward = partial(channel_norm, module)
    return net


def channel_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """RMS norm over channels `B C ...`; torch's vector_norm along a strided axis takes five times as long."""
    length = channel_length(x).clamp_min(1e-12)
    return x * (norm.scale / length) * norm.gamma + norm.bias


def channel_length(x: Tensor) -> Tensor:
    """Euclidean length over channels, `B C ...` to `B 1 ...`, in float32 at least."""
    if x.device.type == "cpu":
        return x.square().sum(1, keepdim=True).sqrt()
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=dtype)


_CUDNN_SOUND_AGAIN = 91500


def conv3d_wastes_memory(dtype: torch.dtype) -> bool:
    """torch 2.9 with cuDNN before 9.15 computes half-precision conv3d in three times the memory.

    Source: github:pytorch/pytorch issue 166643.
    """
    cudnn = torch.backends.cudnn.version()
    half = dtype in (torch.bfloat16, torch.float16)
    return half and torch.__version__.startswith("2.9.") and cudnn is not None and cudnn < _CUDNN_SOUND_AGAIN
