"""--json of the commands that print a report: numbers for scripts."""

import json

import pytest
import torch

from smra_core import cli
from smra_core.commands import probe_layers, window_error
from smra_core.decoding.window_error import WindowError
from smra_core.evaluation.layer_probe import GroupShare, LayerProbe
from smra_core.lora.adapter import init_lora
from smra_core.lora.metadata import LoraMetadata
from smra_core.lora.plan import MOTION, SUBJECT
from smra_core.lora.writer import save_lora
from smra_core.miniature.model_files import MINIATURE_FILES
from smra_core.training.window_gradient import WindowGradient

RANK = 2


@pytest.fixture
def lora(tmp_path):
    made = init_lora(MINIATURE_FILES.spec, SUBJECT, RANK, torch.Generator().manual_seed(0))
    about = LoraMetadata("subject", str(SUBJECT), RANK, "tiny", ("a sks dog",), 1, "dog", "1")
    save_lora(tmp_path / "dog.safetensors", made, about)
    return tmp_path / "dog.safetensors", len(made)


def run(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect_and_convert_print_what_a_file_holds_and_where_it_is(capsys, lora, tmp_path):
    path, count = lora
    report = run(capsys, "inspect", path, "--json")
    assert sum(report["modules"].values()) == count and report["ranks"] == [RANK]
    assert report["about"]["purpose"] == "subject" and set(report["role_norms"].values()) == {0}
    target = tmp_path / "other.safetensors"
    converted = run(capsys, "convert", path, target, "--to", "kohya", "--json")
    assert converted == {"path": str(target), "dialect": "kohya", "modules": count}


def test_the_errors_of_windows_are_numbers_by_noise_and_context():
    gradients = [WindowGradient(1, 4, 0.5, 2.0, 0.75, 1.0)]
    numbers = json.loads(window_error._to_json({0.1: [WindowError(1, 2.0, 3.0)]}, gradients))
    assert numbers["pixels"][0] == {"noise": 0.1, "windows": [{"context": 1, "warm": 2, "cold": 3}]}
    assert numbers["gradients"][0]["one_cosine"] == 0.5
    assert json.loads(window_error._to_json({}, None)) == {"pixels": [], "gradients": None}


def test_a_probe_gives_its_plan_as_the_options_take_it(tmp_path):
    probe = LayerProbe((GroupShare(SUBJECT, 0.5, 0.25),), (), MOTION, 0.8, (3, 4))
    numbers = json.loads(probe_layers._to_json(probe, tmp_path / "layers.png"))
    assert numbers["roles"] == [{"plan": "q,k,ffn.0", "alone": 0.5, "lost": 0.25}]
    assert numbers["plan"] == "v,o,ffn.0,ffn.2" and numbers["layers"] == [3, 4]
    assert numbers["path"].endswith("layers.png")
