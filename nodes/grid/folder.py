"""Folder of a grid inside ComfyUI's output folder."""

from ...smra_core.evaluation.grid_cells import GridFolder
from ...smra_core.storage.file_name import make_file_name
from ..host.backend import find_output_folder

KEY_LETTERS = 20
"""Letters of a hash that names a cell's files."""


def find_grid_folder(name: str) -> GridFolder:
    """Return the folder of a grid; ValueError for a name without a letter or digit."""
    return GridFolder(find_output_folder("grids") / make_file_name(name))
