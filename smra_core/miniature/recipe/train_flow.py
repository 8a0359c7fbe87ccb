"""Stage 3: a tiny SEA-RAFT, on neighboring frames of random clips whose optical flow is known exactly."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...encoders.sea_raft import FlowEstimate, SeaRaft
from ...encoders.sea_raft_config import SEA_RAFT_MINIATURE
from ..world.random_clips import random_clip
from ..world.scenes import random_scene, render
from ..world.sprite import FRAMES, Painted
from .stage import Stage, cosine_rate

STEPS, BATCH = 9000, 8
PEAK_RATE = 1.2e-3
POOL, FRESH = 300, 1
"""Clips kept at hand, and how many of them are painted anew in every step."""
OF_THE_WORLD = 0.4
"""Part of the clips that are the world's: half of its sprites are of one color, where only outlines move."""
LARGEST = 17.0
"""Pixels of radius: the world's growing sprites reach it."""
DISCOUNT = 0.85
"""Weight of a refinement's loss against the next one's (SEA-RAFT's gamma)."""
SPRITE_WEIGHT = 8.0
NOISE, BLURRED = 0.02, 0.3
"""Of the frames trained on: deviation of the noise, and the part that is blurred as a video VAE blurs."""


class Pairs(NamedTuple):
    """Neighboring frames `B 3 H W` in 0..255, the flow `B 2 H W` between them, and the sprite's mask."""

    first: Tensor
    second: Tensor
    flow: Tensor
    mask_px: Tensor


def train_flow(build: Path, seed: int = 0, steps: int = STEPS) -> None:
    """Train, or go on training, the flow net in the build folder."""
    build.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net = SeaRaft(SEA_RAFT_MINIATURE).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=1e-5)
    stage = Stage("flow", build, steps)
    parts = {"net": net, "optimizer": optimizer}
    done = stage.resume(parts)
    generator = torch.Generator().manual_seed(seed * 1000 + done)
    pool = [any_clip(generator) for _ in range(POOL)]
    held = pairs_of([random_clip(torch.Generator().manual_seed(90 + i)) for i in range(8)])
    for step in stage.remaining(done):
        for _ in range(FRESH):
            pool[int(torch.randint(POOL, (), generator=generator))] = any_clip(generator)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(PEAK_RATE, step, steps)
        chosen = torch.randint(POOL, (BATCH,), generator=generator)
        pairs = spoiled(recolored(drawn_pairs([pool[i] for i in chosen], generator), generator), generator)
        loss = sequence_loss(net.estimate_refinements(pairs.first, pairs.second), pairs)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % stage.report_every == 0:
            errors = end_point_errors(net, held)
            stage.report(step + 1, loss=loss.item(), **errors._asdict())
        stage.keep(step + 1, parts)


def trained_flow(build: Path) -> SeaRaft:
    net = SeaRaft(SEA_RAFT_MINIATURE)
    net.load_state_dict(torch.load(build / "flow.pt", weights_only=True)["net"])
    return net.freeze()


def any_clip(generator: torch.Generator) -> Painted:
    """A clip of random looks, or one of the world's."""
    if torch.rand((), generator=generator) < OF_THE_WORLD:
        return render(random_scene(generator))
    return random_clip(generator, largest=LARGEST)


def drawn_pairs(clips: list, generator: torch.Generator) -> Pairs:
    """One pair of neighboring frames of each clip, forwards in time."""
    places = torch.randint(FRAMES - 1, (len(clips),), generator=generator).tolist()
    return Pairs(
        255 * torch.stack([clip.frames[t] for clip, t in zip(clips, places, strict=True)]),
        255 * torch.stack([clip.frames[t + 1] for clip, t in zip(clips, places, strict=True)]),
        torch.stack([clip.flow[t] for clip, t in zip(clips, places, strict=True)]),
        torch.stack([clip.mask_px[t] for clip, t in zip(clips, places, strict=True)]),
    )


def pairs_of(clips: list) -> Pairs:
    """All pairs of neighboring frames of clips."""
    return Pairs(
        255 * torch.cat([clip.frames[:-1] for clip in clips]),
        255 * torch.cat([clip.frames[1:] for clip in clips]),
        torch.cat([clip.flow for clip in clips]),
        torch.cat([clip.mask_px[:-1] for clip in clips]),
    )


def recolored(pairs: Pairs, generator: torch.Generator) -> Pairs:
    """The pairs with their colors turned about mid gray, each pair by a random rotation of RGB.

    A net that can mostly tell the sprite by its brightness looks at nothing else, and is blind to red on
    gray; after a rotation no direction in color is special.
    """
    turns = torch.linalg.qr(torch.randn(len(pairs.first), 3, 3, generator=generator)).Q

    def recolor(frames: Tensor) -> Tensor:
        return 127.5 + torch.einsum("bij,bjhw->bihw", turns, frames - 127.5)

    return pairs._replace(first=recolor(pairs.first), second=recolor(pairs.second))


def spoiled(pairs: Pairs, generator: torch.Generator) -> Pairs:
    """The pairs with some noise and blur: the flow of decoded predictions is what the net is for."""

    def spoil(frames: Tensor) -> Tensor:
        blurred = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        frames = torch.where(blur, blurred, frames)
        amount = 255 * NOISE * torch.rand(len(frames), 1, 1, 1, generator=generator)
        return frames + amount * torch.randn(frames.shape, generator=generator)

    blur = torch.rand(len(pairs.first), 1, 1, 1, generator=generator) < BLURRED
    return pairs._replace(first=spoil(pairs.first), second=spoil(pairs.second))


def sequence_loss(estimates: list[FlowEstimate], pairs: Pairs) -> Tensor:
    """L1 error of each refinement, the last one counting most, and the sprite more than the still background.

    Not SEA-RAFT's own mixture loss: where nine pixels of ten stand still, a mixture calls the rest ambiguous
    and learns nothing of them.
    """
    weight = 1 + SPRITE_WEIGHT * pairs.mask_px
    last = len(estimates) - 1
    parts = [
        DISCOUNT ** (last - i) * ((estimate.flow - pairs.flow).abs().sum(1) * weight).sum() / weight.sum()
        for i, estimate in enumerate(estimates)
    ]
    return torch.stack(parts).sum()


class EndPointErrors(NamedTuple):
    """Mean length in pixels of what a flow is off by; zero flow for comparison."""

    everywhere: float
    on_sprite: float
    zero_everywhere: float
    zero_on_sprite: float


@torch.no_grad()
def end_point_errors(net: SeaRaft, pairs: Pairs) -> EndPointErrors:
    """Of the net's flow, and of zero flow, against the exact flow."""
    training = net.training
    net.eval()
    flow = torch.cat(
        [net.flow(a, b) for a, b in zip(pairs.first.split(32), pairs.second.split(32), strict=True)]
    )
    net.train(training)
    values = []
    for guess in (flow, torch.zeros_like(flow)):
        error = (guess - pairs.flow).norm(dim=1)
        values += [error.mean().item(), (error * pairs.mask_px).sum().item() / pairs.mask_px.sum().item()]
    return EndPointErrors(*values)
