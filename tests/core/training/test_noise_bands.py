"""Losses by band of noise: edges, means, and their columns in the table of losses."""

import math

import pytest

from smra_core.training.noise_bands import NoiseBands, is_band, split_columns
from smra_core.training.run_folder import LOSSES, RunFolder, read_losses
from smra_core.wan.noise_range import NOISE_PRESETS, WHOLE

PARTS = {"data": "abc"}


def test_bands_are_thirds_of_the_draws():
    assert NoiseBands(WHOLE).edges == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert NoiseBands(NOISE_PRESETS["motion"]).edges == pytest.approx([0.6, 0.6 + 0.4 / 3, 0.6 + 0.8 / 3, 1])
    shifted = NoiseBands(WHOLE, shift=3.0).edges
    assert shifted == pytest.approx([0, 3 / 5, 6 / 7, 1])  # 3 s / (1 + 2 s) at 1/3 and 2/3


def test_losses_are_averaged_in_their_bands():
    bands = NoiseBands(WHOLE)
    means = bands.average([0.1, 0.9, 0.2, 1.0], {"region": [1.0, 5.0, 3.0, 7.0]})
    assert means == {
        "region at sigma 0 to 0.333": 2.0,
        "region at sigma 0.333 to 0.667": None,
        "region at sigma 0.667 to 1": 6.0,
    }


def test_columns_of_bands_are_told_from_others():
    columns = {"step": [1.0], "region": [2.0], "region at sigma 0.6 to 0.733": [3.0]}
    assert split_columns(columns) == {"region": {"0.6 to 0.733": [3.0]}}
    assert [name for name in columns if is_band(name)] == ["region at sigma 0.6 to 0.733"]


def test_a_step_without_a_band_leaves_its_cell_empty(tmp_path):
    run = RunFolder(tmp_path, "dog", PARTS)
    run.log_losses(1, {"total": 1.5, "low": None, "high": 2.0})
    run.log_losses(2, {"total": 2.5, "low": 1.0, "high": None})
    assert (run.path / LOSSES).read_text().split() == ["step,total,low,high", "1,1.5,,2", "2,2.5,1,"]
    columns = read_losses(run.path / LOSSES)
    assert columns["step"] == [1, 2] and columns["total"] == [1.5, 2.5]
    assert math.isnan(columns["low"][0]) and columns["low"][1] == 1


def test_a_table_of_an_earlier_version_gets_the_new_columns(tmp_path):
    RunFolder(tmp_path, "dog", PARTS).log_losses(1, {"total": 1.5, "region": 1.0})
    run = RunFolder(tmp_path, "dog", PARTS)
    run.log_losses(2, {"total": 2.5, "region": 2.0, "low": 3.0})
    run.log_losses(3, {"total": 3.5, "region": 2.0, "low": None})
    lines = (run.path / LOSSES).read_text().split()
    assert lines == ["step,total,region,low", "1,1.5,1,", "2,2.5,2,3", "3,3.5,2,"]


def test_columns_that_are_not_logged_any_more_stay_empty(tmp_path):
    RunFolder(tmp_path, "dog", PARTS).log_losses(1, {"total": 1.5, "held out": 1.0})
    run = RunFolder(tmp_path, "dog", PARTS)
    run.log_losses(2, {"total": 2.5})
    assert (run.path / LOSSES).read_text().splitlines() == ["step,total,held out", "1,1.5,1", "2,2.5,"]
