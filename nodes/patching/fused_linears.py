"""Fused linears: one that computes several projections of an attention, in place of its q, k and v."""

from torch import nn


def find_fused_linear(block: nn.Module, path: str) -> str | None:
    """Return the path of the fused linear that computes `path` (`self_attn.q`) in its place, or None.

    A fused linear is one directly in the same attention or feed-forward net that has none of the native
    names, and at least twice as many outputs as inputs where it computes projections.
    """
    parent_path, _, own = path.rpartition(".")
    if own not in ("q", "k", "v"):
        return None
    try:
        parent = block.get_submodule(parent_path)
    except AttributeError:
        return None
    for name, module in parent.named_children():
        inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if name not in ("q", "k", "v", "o") and inputs and outputs and outputs >= 2 * inputs:
            return f"{parent_path}.{name}"
    return None


def refuse_fused_linears(blocks: nn.Module, names: list[str]) -> None:
    """Raise ValueError when one of these native linear names is computed by a fused linear.

    `blocks` are the transformer blocks of the model.
    """
    for name in names:
        _, index, path = name.split(".", 2)
        if int(index) >= len(blocks):
            continue
        fused = find_fused_linear(blocks[int(index)], path)
        if fused is not None:
            raise ValueError(
                f"The LoRA has {name}, but this model computes q, k and v of that attention together in "
                f"blocks.{index}.{fused}, where a LoRA of {path} alone has no place. Load the checkpoint "
                "without combining its parallel linears, or load one whose linears are separate."
            )
