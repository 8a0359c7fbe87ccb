"""`python -m smra_core side-effects`, on the miniature with LoRAs that change nothing or much."""

import json

import pytest
import torch

from smra_core.cli import main
from smra_core.lora.adapter import init_lora
from smra_core.lora.metadata import LoraMetadata
from smra_core.lora.plan import ALL_LAYERS
from smra_core.lora.writer import save_lora
from smra_core.miniature.held_out_files import write_motion
from smra_core.miniature.model_files import MINIATURE_FILES

FEW = ["--steps", "1", "--frames", "5", "--seeds", "2", "--device", "cpu", "--guidance", "1"]
PROMPT = "a green plain circle moving left on a gray background"


@pytest.fixture
def new_lora(tmp_path):
    """A LoRA as training starts with it, which changes nothing."""
    lora = init_lora(MINIATURE_FILES.spec, ALL_LAYERS, 2, torch.Generator().manual_seed(0))
    save_lora(tmp_path / "new.safetensors", lora, LoraMetadata())
    return tmp_path / "new.safetensors"


def test_a_lora_that_changes_nothing_neither_leaks_nor_stills(tmp_path, new_lora, capsys):
    clip = write_motion(tmp_path / "motion") / "00.mp4"
    given = [
        "--motion",
        str(new_lora),
        "--clip",
        str(clip),
        "--subject",
        str(new_lora),
        "--json",
        "--prompts",
        PROMPT,
    ]
    assert main(["side-effects", *given, *FEW, "--out", str(tmp_path / "out")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["leak"]["actor"] == {"mean": 0, "low": 0, "high": 0}
    assert "does not leak" in result["leak"]["verdict"]
    assert result["stillness"]["motion"]["mean"] == pytest.approx(1)
    assert "does not still" in result["stillness"]["verdict"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "No LoRA is given"),
        (["--motion", "m.safetensors"], "belong together"),
        (["--subject", "s.safetensors", "--seeds", "1"], "at least 2"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_loaded(given, reason, capsys):
    assert main(["side-effects", *given]) == 1
    assert reason in capsys.readouterr().err
