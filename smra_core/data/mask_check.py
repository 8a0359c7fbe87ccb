"""Say how much of a picture a mask covers, and warn where it looks like the background's."""

import torch
from torch import Tensor

_LARGE_SHARE = 0.7
"""Share of the picture above which a mask is more often that of a background than of a subject."""
_SAME_GRAY = 0.06
"""Difference of two values of which JPEG makes one."""
_FEW_GRAYS = 0.95
"""Share of pixels that are black or white in a picture of a mask; resizing leaves grays along its edge."""
_EDGES = ("left", "top", "right", "bottom")


def measure_share(mask_px: Tensor) -> float:
    """Return the share of a mask `H W` of 0 and 1 that is subject."""
    return mask_px.float().mean().item()


def list_touched_edges(mask_px: Tensor) -> list[str]:
    """List the edges of the picture that the subject of a mask `H W` of 0 and 1 touches."""
    borders = (mask_px[:, 0], mask_px[0], mask_px[:, -1], mask_px[-1])
    return [name for name, border in zip(_EDGES, borders, strict=True) if torch.any(border > 0)]


def may_be_inverted(mask_px: Tensor) -> bool:
    """Return whether a mask `H W` covers at least 70 % of its picture or touches all four edges."""
    return measure_share(mask_px) >= _LARGE_SHARE or len(list_touched_edges(mask_px)) == len(_EDGES)


def may_be_mask(pixels: Tensor) -> bool:
    """Return whether a picture `3 H W` in [0, 1] holds black and white alone, as a mask taken for a picture
    does.
    """
    if (pixels.amax(0) - pixels.amin(0)).max() > _SAME_GRAY:
        return False
    black, white = (pixels[0] <= _SAME_GRAY), (pixels[0] >= 1 - _SAME_GRAY)
    return bool(black.any() and white.any()) and (black | white).float().mean().item() >= _FEW_GRAYS


def describe_mask(mask_px: Tensor) -> str:
    """Return what a mask `H W` of 0 and 1 covers, with a warning where it may be that of the background.

    It continues a sentence: "covers 25 % of the picture and touches no edge".
    """
    edges = list_touched_edges(mask_px)
    listed = " and ".join(filter(None, [", ".join(edges[:-1]), *edges[-1:]]))
    some = f"the {listed} edge{'s' if len(edges) > 1 else ''}"
    touched = {0: "no edge", len(_EDGES): "all four edges"}.get(len(edges), some)
    share = measure_share(mask_px)
    covered = f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.2g} %"
    warning = ". Is it inverted? The subject must be white" if may_be_inverted(mask_px) else ""
    return f"covers {covered} of the picture and touches {touched}{warning}"
