"""The chart of a layer probe: what each role and each range of blocks contributes."""

from PIL import Image

from .bar_plot import BarGroup, draw_bar_plot
from .layer_probe import LayerProbe

SERIES = (("alone", "#1d4ed8"), ("lost without it", "#c2410c"))
"""Name and color of each bar of a group."""


def draw_probe(probe: LayerProbe) -> Image.Image:
    """Draw the shares of all groups, as the paper's figure of LoRA sparsity does: all layers are 100 %."""
    groups = [BarGroup(one.label, (one.alone, one.lost)) for one in (*probe.roles, *probe.blocks)]
    used, total = probe.layers
    title = (
        f"Effect of layers, all = 100 %. {probe.plan} keeps {probe.kept:.0%} with {used} of {total} layers"
    )
    return draw_bar_plot(groups, SERIES, title)
