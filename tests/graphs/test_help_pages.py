"""The help pages as files: one for each node, with pictures that are there and what people get wrong."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.benchmarks.memory_table import USUAL_FORMS, render_fits

NODES = Path(__file__).parents[2] / "nodes"
PAGES = NODES / "web" / "docs"
IDS = re.findall(r'^    "(SMRA\w+)":', (NODES / "__init__.py").read_text("utf-8"), re.MULTILINE)
PICTURE = re.compile(r"!\[([^\]]*)\]\((pictures/[\w.]+)\)")
LARGEST = 100_000
"""Bytes of a picture: pages open at once, and the repository stays small."""


CARD = re.compile(r"^\| \d+ GB \| (?:picture|\d+ frames) .*$", re.MULTILINE)
"""A line of a table that tells what fits a card."""


def test_the_tables_of_cards_are_what_the_program_tells():
    """`python -m tests.benchmarks.memory_table` prints them: 16 bit, but 8 bit for the 14B."""
    told = CARD.findall(render_fits(USUAL_FORMS))
    readme, *pages = (
        CARD.findall(path.read_text("utf-8"))
        for path in (
            NODES.parent / "README.md", PAGES / "SMRATrainSubjectLoRA.md", PAGES / "SMRATrainMotionLoRA.md",
        )
    )  # fmt: skip
    assert readme == told and len(told) == 12
    assert sorted(line for page in pages for line in page) == sorted(told)


@pytest.mark.parametrize(
    "node", ["TrainMotionLoRA", "TrainSubjectLoRA", "SparseLoRAPairLoader", "TPointScheduler"]
)
def test_the_list_of_wrong_results_is_named_where_a_result_is_made(node):
    assert "## My result is wrong" in (PAGES / "SMRASparseLoRALoader.md").read_text("utf-8")
    assert "*My result is wrong*" in (PAGES / f"SMRA{node}.md").read_text("utf-8")


def test_there_is_one_page_for_each_node():
    assert len(IDS) == 27 and sorted(IDS) == sorted(page.stem for page in PAGES.glob("*.md"))


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
