"""What a change of a layer's weight and bias adds to its output."""

import torch.nn.functional as F
from torch import Tensor, nn


def compute_change(layer: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return what a layer with this weight and bias alone, in place of its own, gives for the input `x`.

    The layer is a linear, a convolution over frames or a norm. All of them are proportional to weight and
    bias, so that this is the change of the output, to be added to the layer's own. Without a weight it is the
    bias, in a shape that can be added.
    """
    weight, bias = (None if tensor is None else tensor.to(x.dtype) for tensor in (weight, bias))
    if weight is None:
        return bias.view(-1, 1, 1, 1) if isinstance(layer, nn.Conv3d) else bias
    if isinstance(layer, nn.Conv3d):
        return F.conv3d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    if isinstance(layer, nn.RMSNorm):
        return F.rms_norm(x, layer.normalized_shape, weight, layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    return F.linear(x, weight, bias)
