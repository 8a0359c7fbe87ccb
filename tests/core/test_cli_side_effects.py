"""`python -m smra_core side-effects`, on the miniature with LoRAs that change nothing or much."""

import json
from types import SimpleNamespace

import pytest
import torch

from smra_core.cli import main
from smra_core.commands import side_effects
from smra_core.data.video import Video
from smra_core.lora.adapter import init_lora
from smra_core.lora.metadata import LoraMetadata
from smra_core.lora.plan import ALL_LAYERS
from smra_core.lora.writer import save_lora
from smra_core.miniature.held_out_files import write_motion
from smra_core.miniature.model_files import MINIATURE_FILES
from smra_core.standalone.generate import Variant

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


CARD = torch.device("cuda")


class PlacedNet(torch.nn.Linear):
    """Net that notes the device it was moved to, stays where it is, and refuses to compute elsewhere."""

    def __init__(self, placed="cpu"):
        super().__init__(1, 1)
        self.placed = torch.device(placed)

    def to(self, device):
        self.placed = torch.device(device)
        return self

    def compute_pair_flows(self, frames):
        assert self.placed == CARD
        return torch.ones_like(frames[1:, :2])

    def extract_patch_features(self, pictures):
        assert self.placed == CARD
        return torch.ones(len(pictures), 4, 3)


class Sampling:
    """Replaces what the command loads and samples with; `seeds` and `placed` are those of each sampling."""

    def __init__(self, patch):
        self.nets, self.seeds, self.placed, self.names = [], [], [], []
        backend = SimpleNamespace(device=CARD, spec=MINIATURE_FILES.spec)
        patch.setattr(side_effects, "open_backend", lambda args: backend)
        patch.setattr(side_effects, "load_alone", lambda backend, name, path: Variant(name, ""))
        patch.setattr(side_effects, "load_sea_raft", lambda file: self.add_net())
        patch.setattr(side_effects, "load_dinov2", lambda file, device: self.add_net(device))
        patch.setattr(side_effects, "read_clip_file", lambda *args: Video(torch.rand(3, 3, 32, 32), 15, []))
        patch.setattr(side_effects, "generate", self.generate)

    def add_net(self, *placed):
        self.nets.append(PlacedNet(*placed))
        return self.nets[-1]

    def generate(self, backend, prompts, variants, settings, on_step):
        self.seeds.append(settings.seed)
        self.placed.append([net.placed.type for net in self.nets])
        self.names.append([variant.name for variant in variants])
        return {variant.name: torch.rand(len(prompts), 3, 3, 32, 32) for variant in variants}


BOTH = ["--motion", "m.safetensors", "--clip", "c.mp4", "--subject", "s.safetensors"]


def test_the_encoders_leave_the_card_to_the_dit_while_it_samples(monkeypatch):
    sampling = Sampling(monkeypatch)
    assert main(["side-effects", *BOTH, "--seeds", "2"]) == 0
    assert sampling.placed == [["cpu", "cpu"]] * 2
    assert [net.placed.type for net in sampling.nets] == ["cpu", "cpu"]


def test_every_seed_samples_all_variants_from_noises_of_its_own(monkeypatch):
    sampling = Sampling(monkeypatch)
    assert main(["side-effects", *BOTH, "--seeds", "3", "--seed", "7", "--prompts", "a dog", "a car"]) == 0
    assert sampling.names == [["base", "motion", "subject"]] * 3
    noises = [seed + video for seed in sampling.seeds for video in range(2)]
    assert sampling.seeds[0] == 7 and len(set(noises)) == len(noises)
