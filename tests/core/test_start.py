"""A command imports what it needs and no more: importing all that the pack can do takes ten seconds."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
HEAVY = {"diffusers", "timm", "transformers", "scipy", "peft", "torchvision", "segment_anything"}
"""Packages that take from half a second to several seconds to import."""


def imported_by(*commands: list[str]) -> set[str]:
    """Run commands in one process of their own; return the top-level packages that they imported."""
    script = (
        f"import sys\nfrom smra_core.cli import main\nfor command in {commands}:\n"
        "    try:\n        code = main(command)\n    except SystemExit as end:\n        code = end.code\n"
        "    assert code == 0\nprint(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stderr.splitlines()[-1].split())


def test_help_imports_no_torch():
    assert not imported_by(["--help"]) & (HEAVY | {"torch", "numpy"})


def test_help_on_a_command_and_inspect_import_none_of_the_models_packages(tmp_path):
    pair = {"lora_A.weight": torch.ones(2, 8), "lora_B.weight": torch.ones(8, 2)}
    file = tmp_path / "lora.safetensors"
    save_file({f"diffusion_model.blocks.0.self_attn.q.{name}": value for name, value in pair.items()}, file)
    imported = imported_by(["train-subject", "--help"], ["train-motion", "--help"], ["inspect", str(file)])
    assert "torch" in imported and not imported & HEAVY
