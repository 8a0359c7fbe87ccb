"""Shapes of the layers of a MODEL that a LoRA can be added to."""

from torch import nn

from ...smra_core.wan.spec import Role


def read_linear_shapes(model) -> dict[str, tuple[int, int]]:
    """Return (out, in) features of the linears of the blocks that the paper's plans use, by native name."""
    blocks = getattr(model.model.diffusion_model, "blocks", ())
    shapes = {}
    for index, block in enumerate(blocks):
        for path in (path for role in Role for path in role.paths):
            linear = _find_submodule(block, path)
            if linear is not None:
                shapes[f"blocks.{index}.{path}"] = linear.out_features, linear.in_features
    return shapes


def read_layer_shapes(model) -> dict[str, tuple[int, ...]]:
    """Return the shapes of weight and bias of every layer that a change can be added to, by native name.

    These are linears, convolutions over frames and norms: what they give is proportional to their weight and
    bias, so that the output of a change can be added to theirs.
    """
    shapes = {}
    for name, module in model.model.diffusion_model.named_modules():
        shape = _read_weight_shape(module)
        if shape is None:
            continue
        name = name.replace("_orig_mod.", "")
        shapes[f"{name}.weight"] = shape
        if getattr(module, "bias", None) is not None:
            shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _read_weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    # Of a packed weight the module knows the shape, its tensor does not.
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
        return tuple(module.normalized_shape)
    if isinstance(module, nn.Conv3d) and module.groups == 1:
        return module.out_channels, module.in_channels, *module.kernel_size
    return None


def _find_submodule(block, path: str):
    try:
        return block.get_submodule(path)
    except AttributeError:
        return None
