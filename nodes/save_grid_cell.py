"""The SMRA Save Grid Cell node: one video of a grid, with the values that it shows."""

from comfy_api.latest import io

from ..smra_core.storage.content_hash import hash_content
from ..smra_core.storage.file_name import make_file_name
from .grid.folder import KEY_LETTERS, find_grid_folder
from .host.wire_types import Grid, GridType


class SaveGridCell(io.ComfyNode):
    """Node that saves frames as a cell of a grid."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRASaveGridCell",
            display_name="SMRA Save Grid Cell",
            category="SMRABooth",
            description=(
                "Saves a video as a cell of a grid that you build yourself, for SMRA Write Grid Report. "
                "SMRA Compare Grid saves its own."
            ),
            inputs=[
                io.Image.Input("images", tooltip="Frames of the video."),
                GridType.Input(
                    "after", optional=True,
                    tooltip="The grid from another SMRA Save Grid Cell, which this cell joins.",
                ),
                io.String.Input(
                    "name", default="my_grid", tooltip="Name of the grid's folder. Cells of one name are "
                    "one grid."
                ),
                io.String.Input(
                    "labels", default="subject: dog\nmotion: walk", multiline=True,
                    tooltip="What the cell shows, a line for each axis of the grid: subject: dog. More "
                    "lines give more axes to sort by.",
                ),
                io.Float.Input(
                    "fps", default=16.0, min=0.1, max=240.0, step=0.1,
                    tooltip="Frames per second. Raising it plays the video faster.",
                ),
                io.String.Input(
                    "note", default="", tooltip="Text under the video, such as the prompt."
                ),
                io.String.Input(
                    "key", default="",
                    tooltip="Name of the file; empty takes a hash of the frames and labels.",
                ),
            ],
            outputs=[
                GridType.Output(display_name="grid", tooltip="For SMRA Write Grid Report, or another cell.")
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        images,
        name: str,
        labels: str,
        fps: float,
        note: str = "",
        key: str = "",
        after: Grid | None = None,
    ) -> io.NodeOutput:
        folder, values = find_grid_folder(name), parse_labels(labels)
        frames = images[..., :3].movedim(-1, 1).clamp(0, 1).float().cpu()
        contents = f"{hash_content(frames)} {sorted(values.items())}"
        chosen = make_file_name(key or hash_content(contents.encode())[:KEY_LETTERS])
        folder.save_cell(chosen, frames, fps, values, note)
        before = after.keys if after is not None else ()
        return io.NodeOutput(Grid(folder.path.name, tuple(dict.fromkeys([*before, chosen]))))


def parse_labels(text: str) -> dict[str, str]:
    """Return the labels that lines such as `subject: dog` give; ValueError for a line without a colon."""
    labels = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        axis, colon, value = line.partition(":")
        if not colon:
            raise ValueError(f"The label {line!r} has no colon. Write the axis before it: subject: {line}.")
        labels[axis.strip()] = value.strip()
    if not labels:
        raise ValueError("A cell needs a label at least, such as subject: dog.")
    return labels
