"""Stage 4: a tiny DINOv2-class transformer whose patch features tell subjects apart.

Supervised by what the painter knows: two pictures of one random sprite (at other places, in other sizes, on
other backgrounds) must be closer than pictures of other sprites, and every patch must tell how much of it the
sprite covers, in what mean color.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ...encoders.dinov2 import TOKEN, DinoV2, prepare_pictures
from ...encoders.dinov2_files import DinoV2Config
from ..world.random_clips import random_views
from ..world.sprite import SIZE
from .stage import Stage, cosine_rate

GRID = SIZE // TOKEN
CONFIG = DinoV2Config(width=96, depth=4, heads=3, hidden=384, gated=False, grid=GRID, registers=0)
STEPS, SPRITES = 1000, 48
"""Steps, and sprites a step, each seen in two pictures."""
PEAK_RATE = 1e-3
TEMPERATURE = 0.1
KNOWN = 4
"""Numbers that each patch tells: coverage and mean RGB of the sprite in it."""


class Views(NamedTuple):
    """Pictures `B 3 H W` in [0, 1] of one sprite each, and what is known of every patch."""

    pictures: Tensor
    coverage: Tensor
    """`B N`, in [0, 1]."""
    color: Tensor
    """`B N 3`: mean RGB of the sprite's pixels in the patch, 0 where there are none."""


class Heads(nn.Module):
    """What is read off the features in training and thrown away after."""

    def __init__(self, width: int):
        super().__init__()
        self.patch = nn.Linear(width, KNOWN)
        self.subject = nn.Linear(width, width)


def train_patches(build: Path, seed: int = 0, steps: int = STEPS) -> None:
    """Train, or go on training, the patch teacher in the build folder."""
    build.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    vit, heads = new_vit(), Heads(CONFIG.width)
    trained = [*vit.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=PEAK_RATE, weight_decay=0.02)
    stage = Stage("patches", build, steps)
    parts = {"vit": vit, "heads": heads, "optimizer": optimizer}
    done = stage.resume(parts)
    for step in stage.remaining(done):
        generator = torch.Generator().manual_seed(seed * steps + step)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(PEAK_RATE, step, steps, warmup=200)
        first, second = views(generator, SPRITES)
        contrast, dense, right = losses(vit, heads, first, second)
        optimizer.zero_grad()
        (contrast + dense).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if (step + 1) % stage.report_every == 0:
            stage.report(step + 1, contrast=contrast.item(), dense=dense.item(), matched=right)
        stage.keep(step + 1, parts)


def new_vit() -> VisionTransformer:
    vit = DinoV2(CONFIG).vit.requires_grad_(True)
    vit.init_weights("")  # a net that waits for a file's weights starts with none
    return vit


def trained_patches(build: Path) -> DinoV2:
    net = DinoV2(CONFIG)
    net.vit.load_state_dict(torch.load(build / "patches.pt", weights_only=True)["vit"])
    return net


def views(generator: torch.Generator, sprites: int) -> tuple[Views, Views]:
    """Two pictures of each of so many random sprites."""
    painted = [random_views(generator, 2) for _ in range(sprites)]
    return _views([first for first, _ in painted]), _views([second for _, second in painted])


def _views(painted: list) -> Views:
    pictures = torch.cat([p.frames for p in painted])
    mask = torch.cat([p.mask_px for p in painted])[:, None]
    coverage = F.avg_pool2d(mask, TOKEN)
    color = F.avg_pool2d(pictures * mask, TOKEN) / coverage.clamp_min(1e-6)
    return Views(pictures, coverage.flatten(1), color.flatten(2).mT)


def losses(vit: VisionTransformer, heads: Heads, first: Views, second: Views) -> tuple[Tensor, Tensor, float]:
    """InfoNCE of the sprites' features, squared error of what patches tell, and how often a sprite finds its
    other picture among all.
    """
    embeddings, dense = [], []
    for view in (first, second):
        features = patch_tokens(vit, view.pictures)
        told = heads.patch(features)
        dense.append(F.mse_loss(told[..., 0], view.coverage))
        dense.append((view.coverage[..., None] * (told[..., 1:] - view.color) ** 2).mean() * 4)
        embeddings.append(F.normalize(heads.subject(subject_feature(features, view.coverage)), dim=-1))
    logits = embeddings[0] @ embeddings[1].T / TEMPERATURE
    partner = torch.arange(len(logits))
    contrast = (F.cross_entropy(logits, partner) + F.cross_entropy(logits.T, partner)) / 2
    return contrast, torch.stack(dense).sum(), (logits.argmax(1) == partner).float().mean().item()


def patch_tokens(vit: VisionTransformer, pictures: Tensor) -> Tensor:
    """Features `B N D` with gradient, from the same pixels that DinoV2.patch_features shows its net."""
    return vit.forward_features(prepare_pictures(pictures))[:, vit.num_prefix_tokens :]


def subject_feature(features: Tensor, coverage: Tensor) -> Tensor:
    """Mean feature `B D` of the patches `B N D`, by how much of each the subject covers, `B N`."""
    weight = coverage / coverage.sum(1, keepdim=True)
    return (weight[..., None] * features).sum(1)


@torch.no_grad()
def matching(net: DinoV2, sprites: int = 100, seed: int = 5) -> float:
    """How often the subject's features alone find a held-out sprite's other picture among all of them."""
    first, second = views(torch.Generator().manual_seed(seed), sprites)
    units = [
        F.normalize(subject_feature(net.extract_patch_features(view.pictures), view.coverage), dim=-1)
        for view in (first, second)
    ]
    found = (units[0] @ units[1].T).argmax(1)
    return (found == torch.arange(sprites)).float().mean().item()
