"""The benchmark of a card, run on the CPU with tiny models: the same code, other sizes."""

import json

import pytest
import torch

from smra_core.lora.adapter import init_lora
from smra_core.training.train_settings import TrainSettings
from smra_core.training.trainer import train_lora
from tests.benchmarks.gpu import short_memory
from tests.benchmarks.gpu.__main__ import run_parts
from tests.benchmarks.gpu.meter import Row, measured, run_case
from tests.benchmarks.gpu.released_way import decode_tiled, list_tiles
from tests.benchmarks.gpu.report import describe_machine, render_tables, write_report
from tests.benchmarks.gpu.sizes import PAPER, TINY

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "part, cases",
    [("motion", 9), ("subject", 4), ("short-memory", 20), ("sampling", 5), ("large", 5), ("preparation", 3)],
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


def test_steps_give_the_same_lora_bit_for_bit_however_weights_and_inputs_wait(monkeypatch):
    """For each form of the weights; chunks add up in an order of their own."""
    trained = {}

    def keep_lora(row, denoiser, objective, samples, settings, steps):
        lora = init_lora(denoiser.spec, settings.plan, settings.rank, torch.Generator().manual_seed(0))
        train = TrainSettings(steps=steps, accumulate=1, learning_rate=1e-2)
        train_lora(denoiser, lora, objective, samples, train)
        trained[row.case] = torch.cat([pair.b.detach().flatten() for pair in lora.values()])

    monkeypatch.setattr(short_memory, "train_measured", keep_lora)
    for row, work in short_memory.list_short_memory_cases(TINY, CPU, 2):
        if row.part.startswith("step"):
            torch.manual_seed(0)
            work(row)
    assert len(trained) == len(short_memory.ARMS)
    exact = {name: value for name, value in trained.items() if not name.startswith(("fp8", "INT8"))}
    whole = exact.pop("feed-forward nets in one piece")
    first = exact["16 bit, all blocks on the card"]
    assert all(torch.equal(value, first) for value in exact.values())
    assert torch.allclose(whole, first, atol=1e-3) and first.abs().max() > 1e-3
    for form in ("fp8", "INT8"):
        same = [value for name, value in trained.items() if name.startswith(form)]
        assert len(same) == 2 and torch.equal(*same) and not torch.equal(same[0], first)


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
