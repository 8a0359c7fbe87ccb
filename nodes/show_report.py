"""The SMRA Show Report node: where the HTML report of a run is, and the address that opens it."""

import os
import re
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

from comfy_api.latest import io, ui

from .host.input_folder import resolve_input

_TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL)
_HEAD = 65536
"""Characters of a page in which its title is looked for."""


class ShowReport(io.ComfyNode):
    """Node that shows the HTML report of a run."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRAShowReport",
            display_name="SMRA Show Report",
            category="SMRABooth",
            description=(
                "Shows where an HTML report in ComfyUI's output folder is, and the address that gives it "
                "out. ComfyUI shows no page of others inside its own: the browser downloads the report. Open "
                "the downloaded file."
            ),
            inputs=[
                io.String.Input(
                    "report",
                    default="",
                    tooltip="Path of the report in ComfyUI's output folder, such as grid/report.html. Empty "
                    "takes the newest one there.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="address", tooltip="Address below that of ComfyUI."),
                io.String.Output(display_name="path", tooltip="Path of the file on the server."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, report: str = "") -> io.NodeOutput:
        path = find_report(report)
        address = make_address(path)
        text = f"{read_title(path)}\n{path}\nAdd this to ComfyUI's address in the browser: {address}"
        return io.NodeOutput(address, str(path), ui=ui.PreviewText(text))

    @classmethod
    def fingerprint_inputs(cls, report: str = "", **_) -> str:
        """Return a text that changes with the report, so that a new one is shown."""
        try:
            path = find_report(report)
        except ValueError:
            return ""
        return f"{path} {path.stat().st_mtime_ns}"


def find_report(report: str) -> Path:
    """Return the path of a report in the output folder; the newest one there for an empty text.

    Raises ValueError when there is none, and for a path to anywhere else.
    """
    import folder_paths

    home = Path(os.path.normpath(folder_paths.get_output_directory()))
    if report.strip():
        path = Path(os.path.normpath(resolve_input(str(home / report.strip()))))
        if not path.is_file() or path.suffix.lower() != ".html" or not path.is_relative_to(home):
            raise ValueError(f"{report!r} is no .html file in ComfyUI's output folder ({home}).")
        return path
    pages = sorted(home.rglob("*.html"), key=lambda page: page.stat().st_mtime_ns)
    if not pages:
        raise ValueError(f"There is no .html file in ComfyUI's output folder ({home}). Make a report first.")
    return pages[-1]


def make_address(path: Path) -> str:
    """Return the address, below that of ComfyUI, at which it gives out a file of its output folder."""
    import folder_paths

    inside = path.relative_to(os.path.normpath(folder_paths.get_output_directory()))
    subfolder = inside.parent.as_posix().removeprefix(".")
    return "/view?" + urlencode({"filename": inside.name, "subfolder": subfolder, "type": "output"})


def read_title(path: Path) -> str:
    """Return the title of a page, or its file's name where it has none."""
    with open(path, encoding="utf-8", errors="replace") as file:
        found = _TITLE.search(file.read(_HEAD))
    return unescape(found[1]).strip() if found else path.name
