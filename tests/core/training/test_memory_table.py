"""The benchmarks' tables of memory and copies say what the program tells now."""

from pathlib import Path

from tests.benchmarks.memory_table import MODELS, render_fits, render_parts
from tests.benchmarks.stream_arithmetic import list_rows

README = Path(__file__).parents[2] / "benchmarks" / "README.md"


def check_rows(rows):
    text = README.read_text("utf-8")
    missing = [row for row in rows if row not in text]
    assert not missing, f"Run the table's command anew, and write down what it prints: {missing[0]}"


def test_the_table_of_cards_is_that_of_the_program():
    check_rows(render_fits(dict.fromkeys(MODELS, 1.0)).splitlines()[2:])


def test_the_table_of_parts_is_that_of_the_program():
    check_rows(render_parts().splitlines()[2:])


def test_the_table_of_copies_is_that_of_the_program():
    check_rows(list_rows(0.5))
