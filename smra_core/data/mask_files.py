"""Find the mask that belongs to a picture, by the names that other programs give to masks."""

import os
import re
from pathlib import Path

from .file_names import fold_name, list_visible_files, list_visible_folders
from .metadata_table import find_file_inside
from .picture import PICTURE_SUFFIXES

MASK_FOLDER = "masks"
"""Folder of masks as the authors call it; it comes before others."""
_MASK_FOLDERS = {"mask", "masks", "masklabel", "masklabels", "subjectmask", "subjectmasks"}
"""Names of mask folders, in lower case, without separators."""
# OneTrainer writes dog-masklabel.png; dog_mask.png, dog-mask.png, dog.mask.png and mask_dog.png are common.
_MASK_AT_END = re.compile(r"(?P<picture>.+?)[-_. ]mask(label)?s?$", re.IGNORECASE | re.DOTALL)
_MASK_AT_START = re.compile(r"mask(label)?s?[-_. ](?P<picture>.+)$", re.IGNORECASE | re.DOTALL)
_MASK_ALONE = re.compile(r"mask(label)?s?$", re.IGNORECASE)
_MASK_LABEL = re.compile(r".+[-_. ]masklabels?$", re.IGNORECASE | re.DOTALL)


def is_picture_name(name: str) -> bool:
    """Return whether a file's ending is that of a picture."""
    return Path(name).suffix.lower() in PICTURE_SUFFIXES


def find_masked_name(name: str) -> str | None:
    """Return the folded name of the picture to which a file called like a mask belongs, else None."""
    stem = Path(name).stem
    found = _MASK_AT_END.match(stem) or _MASK_AT_START.match(stem)
    return fold_name(found["picture"]) if found else None


def select_pictures(names: list[str]) -> list[str]:
    """Select the names that are pictures and not masks of pictures beside them.

    A name ending in -masklabel is never a picture, nor is mask.png beside others; another mask's name is one
    when its picture is not there.
    """
    pictures = [name for name in names if is_picture_name(name)]
    pictures = [name for name in pictures if not _MASK_ALONE.match(Path(name).stem)] or pictures
    known = {folded for name in pictures for folded in (fold_name(Path(name).stem), fold_name(name))}
    return [
        name
        for name in pictures
        if find_masked_name(name) not in known and not _MASK_LABEL.match(Path(name).stem)
    ]


def is_mask_folder(folder: Path) -> bool:
    """Return whether a folder's name says that it holds masks."""
    return re.sub(r"[-_. ]", "", folder.name).casefold() in _MASK_FOLDERS


def list_mask_folders(*parents: Path) -> list[Path]:
    """List the folders of masks in these folders, those called `masks` first."""
    found = [
        folder for parent in parents for folder in list_visible_folders(parent) if is_mask_folder(folder)
    ]
    return sorted(dict.fromkeys(found), key=lambda folder: folder.name != MASK_FOLDER)


def find_mask_beside(home: Path, image: Path) -> Path | None:
    """Return the mask of a picture: the one in a mask folder beside it or in `home`, else one beside it.

    In a mask folder it has the picture's stem, its whole name (dog.jpg.png), or a mask's name (dog_mask.png);
    beside the picture it has a mask's name, or is called mask.png where there is no other picture. Raises
    ValueError when it leads out of `home`.
    """
    stem, whole = fold_name(image.stem), fold_name(image.name)
    for folder in list_mask_folders(image.parent, home):
        names = [name for name in list_visible_files(folder) if is_picture_name(name)]
        by_stem = [name for name in names if Path(name).stem == image.stem]
        alike = [name for name in names if fold_name(Path(name).stem) in (stem, whole)]
        called_mask = [name for name in names if find_masked_name(name) in (stem, whole)]
        for name in (*by_stem, *alike, *called_mask):
            return _check_inside(home, folder / name)
    for name in list_visible_files(image.parent):
        if is_picture_name(name) and name != image.name and find_masked_name(name) in (stem, whole):
            return _check_inside(home, image.parent / name)
    names = list_visible_files(image.parent)
    if select_pictures(names) == [image.name]:
        for name in names:
            if is_picture_name(name) and name != image.name and _MASK_ALONE.match(Path(name).stem):
                return _check_inside(home, image.parent / name)
    return None


def _check_inside(home: Path, mask: Path) -> Path:
    return find_file_inside(home, os.path.relpath(mask, home), str(home))


def describe_unread_folders(home: Path, read: set[Path], has_masks: bool) -> list[str]:
    """Return a note on each folder with pictures in `home` that is not in `read` and no mask folder.

    Without any mask also on mask folders beside `home`, where other trainers have them.
    """
    notes = []
    stems = {fold_name(path.stem) for path in read if path.is_file()}
    for folder in list_visible_folders(home):
        names = [name for name in list_visible_files(folder) if is_picture_name(name)]
        if not names or folder.resolve() in read or is_mask_folder(folder):
            continue
        shared = sum(fold_name(Path(name).stem) in stems for name in names)
        masks = f" If they are masks, call it {MASK_FOLDER}." if shared else ""
        notes.append(f"the folder {folder.name}/ with {len(names)} pictures is not read.{masks}")
    if not has_masks:
        outside = [folder for folder in list_mask_folders(home.resolve().parent) if folder != home.resolve()]
        notes += [
            f"the folder {folder.name}/ beside {home.name}/ is not read; move its masks to "
            f"{home.name}/{MASK_FOLDER}/"
            for folder in outside
        ]
    return notes
