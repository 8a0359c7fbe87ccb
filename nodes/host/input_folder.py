"""The files that a workflow may name: those in ComfyUI's input, output and temp folders, and no others.

A workflow comes from anyone, so a path in it must not show what else lies on the computer.
"""

import os
from pathlib import Path, PureWindowsPath

_HOW = (
    "Copy it into ComfyUI's input folder, or make a link to it there, and write its name, such as my_dog. "
    "(ComfyUI started with --input-directory has another input folder.)"
)


def resolve_input(text: str) -> Path:
    """Return the path that a text field means: a name in the input folder, or a whole path in one of the
    folders that ComfyUI gives. A link that lies in such a folder may lead out of it, because its owner has
    made it. Raises ValueError for an empty text and for a path to anywhere else.
    """
    import folder_paths

    cleaned = (text or "").strip().strip("\"'").strip()
    if not cleaned:
        raise ValueError("No folder is given. Write its name in ComfyUI's input folder, such as my_dog.")
    _refuse_names_of_windows(cleaned)
    home = Path(folder_paths.get_input_directory())
    path = Path(cleaned).expanduser()
    if not path.is_absolute():
        # People also write the path as they see it from ComfyUI's own folder.
        is_seen_from_above = path.parts[0] == home.name and not (home / path).exists()
        path = home.parent / path if is_seen_from_above else home / path
    allowed = [home, Path(folder_paths.get_output_directory()), Path(folder_paths.get_temp_directory())]
    # By the text and not by `resolve`, which would follow the links that the owner has made.
    normal = Path(os.path.normpath(path))
    if not any(normal.is_relative_to(os.path.normpath(folder)) for folder in allowed):
        raise ValueError(f"{cleaned!r} lies outside of ComfyUI's folders, and is not read. {_HOW}")
    return path


def _refuse_names_of_windows(text: str) -> None:
    """Raise ValueError for a share of the network and for a device, which Windows takes for files."""
    path = PureWindowsPath(text)
    if text.startswith(("\\\\", "//")) or path.is_reserved():
        raise ValueError(f"{text!r} is a network share or a device of Windows, and is not read. {_HOW}")
