"""Fast forms of the video VAE's convolutions and norms, for CPUs and for GPU libraries with a slow conv3d.

torch's conv3d of narrow layers is very slow on CPUs in float32. GFLOP/s of a kernel of 3x3x3, as a conv3d and
as a conv2d over stacked frames, measured with torch 2.11 on one busy core: 16 channels 6 and 27, 32 channels
12 and 62, 64 channels 22 and 46.
"""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

NARROW = 128
"""Number of channels below which a conv3d on a CPU is computed as a conv2d."""


def convolve_3d(x: Tensor, weight: Tensor, bias: Tensor | None, borders: tuple[int, int] = (0, 0)) -> Tensor:
    """Compute a conv3d of stride 1, by the form that is faster for this input.

    x is `B C T H W`; height and width are padded by `borders`, time is not.
    """
    if is_slow_as_conv3d(x, weight):
        return convolve_stacked_frames(x, weight, bias, borders)
    return F.conv3d(x, weight, bias, padding=(0, *borders))


def is_slow_as_conv3d(x: Tensor, weight: Tensor) -> bool:
    """Return whether to compute this conv3d as a conv2d over stacked frames: faster on CPUs, less memory with
    some GPU library versions.
    """
    if weight.shape[2] == 1:
        return False
    if x.device.type == "cuda":
        return wastes_memory_in_conv3d(x.dtype)
    return x.device.type == "cpu" and x.dtype == torch.float32 and min(weight.shape[:2]) < NARROW


def convolve_stacked_frames(
    x: Tensor, weight: Tensor, bias: Tensor | None, borders: tuple[int, int] = (0, 0)
) -> Tensor:
    """Compute the same conv3d as a conv2d: the frames under the kernel are stacked as channels."""
    stacks = x.unfold(2, weight.shape[2], 1)
    images = rearrange(stacks, "b c t h w k -> (b t) (c k) h w")
    frames = F.conv2d(images, weight.flatten(1, 2), bias, padding=borders)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(x))


def with_fast_layers(net: nn.Module) -> nn.Module:
    """Switch a net's own convolutions and norms to the fast forms, and return the net.

    Weights and names stay as they are; results are the same up to float32's rounding.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv3d) and module.stride == (1, 1, 1) and module.padding == (0, 0, 0):
            # The method of torch that Conv3d.forward calls with its weight and bias.
            module._conv_forward = convolve_3d
        elif type(module).__name__ == "WanRMS_norm":  # by name, because ComfyUI has no diffusers
            module.forward = partial(normalize_channels, module)
    return net


def normalize_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply an RMS norm over the channels of `B C ...`; torch's vector_norm along a strided axis takes five
    times as long.
    """
    length = compute_channel_length(x).clamp_min(1e-12)
    # Cast, because off the CPU the length of a half-precision input is float32, and so would the result be.
    return x * (norm.scale / length).to(x.dtype) * norm.gamma + norm.bias


def compute_channel_length(x: Tensor) -> Tensor:
    """Return the Euclidean length over channels, `B C ...` to `B 1 ...`; off the CPU in float32 at least."""
    if x.device.type == "cpu":
        return x.square().sum(1, keepdim=True).sqrt()
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=dtype)


_CUDNN_FIXED = 91500


def wastes_memory_in_conv3d(dtype: torch.dtype) -> bool:
    """Return whether this torch takes three times the memory for a conv3d in half precision, as torch 2.9
    with cuDNN before 9.15 does.

    Source: github:pytorch/pytorch issue 166643.
    """
    cudnn = torch.backends.cudnn.version()
    half = dtype in (torch.bfloat16, torch.float16)
    return half and torch.__version__.startswith("2.9.") and cudnn is not None and cudnn < _CUDNN_FIXED
