"""The help pages as files: one for each node, with pictures that are there and what people get wrong."""

import re
from pathlib import Path

import pytest
from PIL import Image

NODES = Path(__file__).parents[2] / "nodes"
PAGES = NODES / "web" / "docs"
IDS = re.findall(r'^    "(SMRA\w+)":', (NODES / "__init__.py").read_text("utf-8"), re.MULTILINE)
PICTURE = re.compile(r"!\[([^\]]*)\]\((pictures/[\w.]+)\)")
LARGEST = 100_000
"""Bytes of a picture: pages open at once, and the repository stays small."""


def test_there_is_one_page_for_each_node():
    assert len(IDS) == 26 and sorted(IDS) == sorted(page.stem for page in PAGES.glob("*.md"))


@pytest.mark.parametrize("node", IDS)
def test_a_page_has_its_title_what_people_get_wrong_and_whole_pictures(node):
    text = (PAGES / f"{node}.md").read_text("utf-8")
    assert text.startswith("# SMRA ") and "**Common mistakes**" in text
    assert text.count("](pictures/") == len(PICTURE.findall(text))
    for about, name in PICTURE.findall(text):
        with Image.open(PAGES / name) as picture:
            picture.load()
        assert about and (PAGES / name).stat().st_size < LARGEST


def test_every_picture_is_shown_somewhere():
    shown = {name for page in PAGES.glob("*.md") for _, name in PICTURE.findall(page.read_text("utf-8"))}
    assert shown == {f"pictures/{file.name}" for file in (PAGES / "pictures").iterdir()}
