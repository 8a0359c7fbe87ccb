"""The benchmark of a card, run on the CPU with tiny models: the same code, other sizes."""

import json

import pytest
import torch

from tests.benchmarks.gpu.__main__ import run_parts
from tests.benchmarks.gpu.meter import Row, measured, run_case
from tests.benchmarks.gpu.released_way import decode_tiled, list_tiles
from tests.benchmarks.gpu.report import describe_machine, render_tables, write_report
from tests.benchmarks.gpu.sizes import PAPER, TINY

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "part, cases", [("motion", 9), ("subject", 4), ("sampling", 5), ("large", 5), ("preparation", 3)]
)
def test_every_case_of_a_part_is_timed(part, cases, tmp_path):
    rows, left_out = run_parts([part], TINY, CPU, 2, lambda: True)
    assert len(rows) == cases and not left_out
    assert all(row.seconds and not row.note for row in rows)
    assert all(row.told for row in rows if part in ("subject", "large"))
    table = render_tables(rows)
    assert all(row.case in table for row in rows)
    write_report(tmp_path / "a" / "gpu.json", describe_machine(CPU, "abc"), rows, {"tests": "not run"})
    read = json.loads((tmp_path / "a" / "gpu.json").read_text())
    assert read["machine"]["commit"] == "abc" and len(read["rows"]) == cases


def test_what_there_is_no_time_for_is_named():
    rows, left_out = run_parts(["preparation"], TINY, CPU, 2, lambda: False)
    assert rows == [] and len(left_out) == 3


def test_a_case_out_of_memory_says_so_and_ends_alone():
    def work(row):
        with measured(row, CPU):
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert run_case(Row("part", "case"), CPU, work).note == "out of memory"
    with pytest.raises(RuntimeError, match="another"):
        run_case(Row("part", "case"), CPU, lambda row: (_ for _ in ()).throw(RuntimeError("another")))


def test_tiles_are_those_of_the_released_code_at_the_papers_size():
    how = PAPER.released
    assert list_tiles(40, how.tile[0], how.stride[0]) == [slice(0, 30), slice(15, 40)]
    assert list_tiles(72, how.tile[1], how.stride[1]) == [slice(0, 52), slice(26, 72)]


def test_tiles_of_a_decoder_without_neighbors_join_without_a_seam():
    class Nearest:
        def decode(self, latents):
            pixels = torch.nn.functional.interpolate(latents[:, :3, 0], scale_factor=8)
            return type("Output", (), {"sample": pixels[:, :, None]})

    latents = torch.randn(1, 16, 1, 10, 12)
    whole = Nearest().decode(latents).sample
    assert torch.allclose(decode_tiled(Nearest(), latents, (6, 6), (3, 3)), whole, atol=1e-6)
