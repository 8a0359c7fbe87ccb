"""Links between the pages of the repository: each leads to a file and to a heading that are there."""

import re
from pathlib import Path

import pytest

PACK = Path(__file__).parents[2]
PARTS = ("", "smra_core", "nodes", "tests", "workflows", ".github")
PAGES = sorted(
    page for part in PARTS for page in (PACK / part).glob("*.md" if not part else "**/*.md")
)  # fmt: skip


def read_text(page: Path) -> str:
    """The page without its blocks of code, in which brackets are no links."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def list_headings(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", read_text(page), flags=re.MULTILINE)
    return {name_anchor(heading) for heading in headings}


def name_anchor(heading: str) -> str:
    """The name that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PACK).as_posix())
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read_text(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, heading = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), f"{target}: there is no such file"
        if heading:
            assert heading in list_headings(linked), f"{target}: there is no such heading"


@pytest.mark.parametrize("page", ["tests/benchmarks/README.md", "smra_core/miniature/bench/README.md"])
def test_the_contents_at_the_top_of_a_long_page_are_its_headings_in_their_order(page):
    top, *parts = re.split("^#{2,3} ", read_text(PACK / page), flags=re.MULTILINE)
    headings = [name_anchor(part.splitlines()[0]) for part in parts]
    assert re.findall(r"^ *- \[.*\]\(#(.*)\)", top, flags=re.MULTILINE) == headings
