"""The SMRA Write Grid Report node: the report page, the video wall and the contact sheet of a grid."""

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..smra_core.evaluation.grid_cells import write_grid_report
from .grid.folder import find_grid_folder
from .grid.metrics import GridMeter, make_metric_inputs
from .host.widgets import show_text
from .host.wire_types import Grid, GridType


class WriteGridReport(io.ComfyNode):
    """Node that writes the report of a grid and shows its sheet."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRAWriteGridReport",
            display_name="SMRA Write Grid Report",
            category="SMRABooth",
            description=(
                "Writes the report page of a grid: all videos side by side and in step, cells to pick and "
                "hide, and a blind vote; beside it a video wall and a contact sheet. They are in "
                "output/smra/grids."
            ),
            inputs=[
                GridType.Input(
                    "grid", optional=True,
                    tooltip="The grid from SMRA Save Grid Cell. Not connected, all cells of the name are "
                    "shown.",
                ),
                io.String.Input("name", default="my_grid", tooltip="Name of the grid's folder."),
                io.String.Input("title", default="", tooltip="Title of the page; empty takes the name."),
                *make_metric_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="The middle frame of all videos."),
                io.String.Output(display_name="report", tooltip="Path of the report page."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, name: str, title: str = "", grid: Grid | None = None, **measured) -> io.NodeOutput:
        folder = find_grid_folder(grid.name if grid is not None else name)
        keys = list(grid.keys) if grid is not None else folder.list_keys()
        meter = GridMeter.read(measured)
        with torch.no_grad():
            report, text = write_grid_report(
                folder, keys, title or folder.path.name, None if meter is None else meter.measure
            )
        show_text(cls, text)
        picture = torch.zeros(1, 64, 64, 3)
        if report.sheet is not None:
            with Image.open(report.sheet) as image:
                picture = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).float()[None] / 255
        return io.NodeOutput(picture, str(report.page), ui=ui.PreviewImage(picture, cls=cls))

    @classmethod
    def fingerprint_inputs(cls, name: str = "", **_) -> str:
        """Return a text that changes with the cells in the folder."""
        return ", ".join(find_grid_folder(name).list_keys()) if name.strip() else ""
