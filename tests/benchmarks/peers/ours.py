"""This project's own trainer: from files, and on ComfyUI's MODEL."""

import importlib
import os
from functools import partial
from pathlib import Path

import torch

from .turns import Turns
from .work import RANK, SIGMA, Work, describe


def train_from_files(work: Work, folder: Path | None, turns: Turns, kept: str) -> None:
    from smra_core.standalone.diffusers_wan import DiffusersDenoiser
    from smra_core.standalone.native_part import DIT

    dit = DIT.load(work.weights, torch.float32)
    _train("smra_core", DiffusersDenoiser(dit, checkpoint=True), work, turns, kept)


def train_in_host(work: Work, folder: Path, turns: Turns, kept: str) -> None:
    with torch.inference_mode():
        model = load_host_model(folder, work)
    host = importlib.import_module("smrabooth_pack.nodes.host.denoiser")
    with host.training_denoiser(model) as denoiser:
        _train("smrabooth_pack.smra_core", denoiser, work, turns, kept)


def load_host_model(folder: Path, work: Work):
    """Return ComfyUI's MODEL of the weights; the pack is imported as ComfyUI does it."""
    os.environ["COMFYUI_PATH"] = str(folder)
    importlib.import_module("tests.host.inside.conftest")
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(work.weights))


def _train(core: str, denoiser, work: Work, turns: Turns, kept: str) -> None:
    adapter, plan, trainer, sura, recompute = (
        importlib.import_module(f"{core}.{name}")
        for name in ("lora.adapter", "lora.plan", "training.trainer", "training.sura", "wan.recompute")
    )
    latents, context = work.make_inputs()
    settings = sura.SubjectSettings(plan=plan.ALL_LAYERS, rank=RANK, sura_weight=0.0)
    mask = torch.ones(1, 1, *latents.shape[-2:])
    sample = sura.SubjectSample("picture", latents[0], context[0], mask, torch.zeros(0, 1))
    pairs = adapter.init_lora(denoiser.spec, settings.plan, RANK, torch.Generator().manual_seed(0))
    objective = sura.SubjectObjective(settings, denoiser.spec.dim, 1)
    train = trainer.TrainSettings(steps=10**6, accumulate=1)
    denoiser.kept_blocks = {
        "last": recompute.KeptBlocks(1),
        "attention": recompute.KeptBlocks(1, work.sizes.blocks - 1),
        "all": recompute.KeptBlocks(whole=work.sizes.blocks),
    }[kept]
    with torch.no_grad():
        velocity = denoiser.velocity(latents, torch.tensor([SIGMA]), context).velocity
    turns.begin(**describe(velocity))
    trainer.train_lora(denoiser, pairs, objective, [sample], train, on_step=lambda info: turns.end_step())


KEPT = {"": "last", "-attention": "attention", "-all": "all"}
TRAINERS = {
    f"{name}{ending}": partial(train, kept=kept)
    for name, train in (("ours", train_from_files), ("ours-in-host", train_in_host))
    for ending, kept in KEPT.items()
}
"""Trainers by name; the ending says which activations are kept in place of being recomputed. Without an
ending it is the last block's, which takes no more memory than to keep none.
"""
