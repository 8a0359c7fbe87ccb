"""Commands that sample apply a LoRA at the noise levels that its file names, or everywhere if asked to."""

from types import SimpleNamespace

import pytest
import torch

from smra_core.cli import main
from smra_core.commands import sample, side_effects
from smra_core.lora.adapter import init_lora
from smra_core.lora.metadata import LoraMetadata
from smra_core.lora.plan import MOTION
from smra_core.lora.writer import save_lora
from smra_core.miniature.model_files import MINIATURE_FILES
from smra_core.wan.noise_range import NOISE_PRESETS, WHOLE

RANGE = NOISE_PRESETS["motion"]


@pytest.fixture
def lora(tmp_path):
    """File of a LoRA that was trained at a part of the noise levels."""
    made = init_lora(MINIATURE_FILES.spec, MOTION, 2, torch.Generator().manual_seed(0))
    save_lora(tmp_path / "walk.safetensors", made, LoraMetadata("motion", noise_range=str(RANGE)))
    return tmp_path / "walk.safetensors"


@pytest.mark.parametrize(
    ("option", "expected"), [([], RANGE), (["--noise-range", "everywhere"], WHOLE)], ids=["trained", "asked"]
)
def test_sample_applies_a_lora_where_it_was_trained_or_everywhere(
    lora, tmp_path, monkeypatch, option, expected
):
    applied = []

    def generate(backend, prompts, variants, *rest):
        applied.extend(one.noise_range for one in variants[0].loras)
        return {"video": torch.zeros(1, 5, 3, 32, 32)}

    monkeypatch.setattr(sample, "generate", generate)
    files = ["--motion", str(lora), "--subject", str(lora), "--video", str(tmp_path / "video.mp4")]
    assert main(["sample", "a dog", *files, *option, "--out", str(tmp_path / "out")]) == 0
    assert applied == [expected, expected]


def test_side_effects_are_measured_where_a_lora_was_trained(lora):
    (one,) = side_effects.load_alone(SimpleNamespace(spec=MINIATURE_FILES.spec), "motion", lora).loras
    assert one.noise_range == RANGE and one.strengths.early == one.strengths.late == 1
