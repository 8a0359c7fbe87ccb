"""Stage 4: a tiny DINOv2-class transformer whose patch features distinguish subjects.

The supervision is known from painting: two pictures of one random sprite (at other places, in other sizes, on
other backgrounds) must be closer than pictures of other sprites, and from every patch's feature one must be
able to read how much of it the sprite covers, and in what mean color.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ...encoders.dinov2 import DinoV2, prepare_pictures
from ...encoders.dinov2_files import DinoV2Config
from ...wan.spec import LATENTS_21
from ..world.random_clips import draw_views
from ..world.sprite import SIZE, Painted
from .stage import Stage, schedule_rate

GRID = SIZE // LATENTS_21.token_pixels
CONFIG = DinoV2Config(width=96, depth=4, heads=3, hidden=384, gated=False, grid=GRID, registers=0)
STEPS, SPRITES = 1000, 48
"""Number of steps, and of sprites in a step, each seen in two pictures."""
PEAK_RATE = 1e-3
TEMPERATURE = 0.1
PATCH_TARGETS = 4
"""Number of values predicted for each patch: coverage by the sprite, and the sprite's mean RGB in it."""


class Views(NamedTuple):
    """Pictures `B 3 H W` in [0, 1] of one sprite each, and the targets of every patch."""

    pictures: Tensor
    coverage: Tensor
    """Share `B N` of each patch that the sprite covers, in [0, 1]."""
    color: Tensor
    """Mean RGB `B N 3` of the sprite's pixels in the patch; 0 where there are none."""


class Heads(nn.Module):
    """Heads on the features, used in training only."""

    def __init__(self, width: int):
        super().__init__()
        self.patch = nn.Linear(width, PATCH_TARGETS)
        self.subject = nn.Linear(width, width)


def train_patches(build: Path, seed: int = 0, steps: int = STEPS) -> None:
    """Train the tiny DINOv2 in the build folder; a stage that was interrupted is continued."""
    build.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    vit, heads = build_vit(), Heads(CONFIG.width)
    trained = [*vit.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=PEAK_RATE, weight_decay=0.02)
    stage = Stage("patches", build, steps)
    parts = {"vit": vit, "heads": heads, "optimizer": optimizer}
    done = stage.resume(parts)
    for step in range(done, stage.steps):
        generator = torch.Generator().manual_seed(seed * steps + step)
        for group in optimizer.param_groups:
            group["lr"] = schedule_rate(PEAK_RATE, step, steps, warmup=200)
        first, second = paint_views(generator, SPRITES)
        contrast, dense, right = compute_losses(vit, heads, first, second)
        optimizer.zero_grad()
        (contrast + dense).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if (step + 1) % stage.report_every == 0:
            stage.report(step + 1, contrast=contrast.item(), dense=dense.item(), matched=right)
        stage.save(step + 1, parts)


def build_vit() -> VisionTransformer:
    """Build the untrained transformer."""
    vit = DinoV2(CONFIG).vit.requires_grad_(True)
    vit.init_weights("")  # a net that waits for a file's weights starts with none
    return vit


def load_trained_dinov2(build: Path) -> DinoV2:
    """Load the DINOv2 of stage 4, as far as it is trained."""
    net = DinoV2(CONFIG)
    net.vit.load_state_dict(torch.load(build / "patches.pt", weights_only=True)["vit"])
    return net


def paint_views(generator: torch.Generator, sprites: int) -> tuple[Views, Views]:
    """Paint two pictures of each of `sprites` random sprites."""
    painted = [draw_views(generator, 2) for _ in range(sprites)]
    return _collect_views([first for first, _ in painted]), _collect_views([second for _, second in painted])


def _collect_views(painted: list[Painted]) -> Views:
    """Stack pictures and compute the targets of their patches."""
    pictures = torch.cat([p.frames for p in painted])
    mask = torch.cat([p.mask_px for p in painted])[:, None]
    coverage = F.avg_pool2d(mask, LATENTS_21.token_pixels)
    color = F.avg_pool2d(pictures * mask, LATENTS_21.token_pixels) / coverage.clamp_min(1e-6)
    return Views(pictures, coverage.flatten(1), color.flatten(2).mT)


def compute_losses(
    vit: VisionTransformer, heads: Heads, first: Views, second: Views
) -> tuple[Tensor, Tensor, float]:
    """Return the InfoNCE loss of the sprites' features, the squared error of the patch targets, and how often
    a sprite's other picture is the nearest of all.
    """
    embeddings, dense = [], []
    for view in (first, second):
        features = encode_patches(vit, view.pictures)
        predicted = heads.patch(features)
        dense.append(F.mse_loss(predicted[..., 0], view.coverage))
        dense.append((view.coverage[..., None] * (predicted[..., 1:] - view.color) ** 2).mean() * 4)
        embeddings.append(F.normalize(heads.subject(average_subject(features, view.coverage)), dim=-1))
    logits = embeddings[0] @ embeddings[1].T / TEMPERATURE
    partner = torch.arange(len(logits))
    contrast = (F.cross_entropy(logits, partner) + F.cross_entropy(logits.T, partner)) / 2
    return contrast, torch.stack(dense).sum(), (logits.argmax(1) == partner).float().mean().item()


def encode_patches(vit: VisionTransformer, pictures: Tensor) -> Tensor:
    """Return patch features `B N D` with gradient, from pixels normalized as in DinoV2.patch_features."""
    return vit.forward_features(prepare_pictures(pictures))[:, vit.num_prefix_tokens :]


def average_subject(features: Tensor, coverage: Tensor) -> Tensor:
    """Average patch features `B N D`, weighted by the subject's coverage `B N`, to a feature `B D`."""
    weight = coverage / coverage.sum(1, keepdim=True)
    return (weight[..., None] * features).sum(1)


@torch.no_grad()
def measure_matching(net: DinoV2, sprites: int = 100, seed: int = 5) -> float:
    """Return how often a held-out sprite's other picture is the nearest of all by the subject's features."""
    first, second = paint_views(torch.Generator().manual_seed(seed), sprites)
    units = [
        F.normalize(average_subject(net.extract_patch_features(view.pictures), view.coverage), dim=-1)
        for view in (first, second)
    ]
    found = (units[0] @ units[1].T).argmax(1)
    return (found == torch.arange(sprites)).float().mean().item()
