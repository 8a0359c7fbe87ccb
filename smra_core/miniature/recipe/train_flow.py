"""Stage 3: a tiny SEA-RAFT, on adjacent frames of random clips whose optical flow is known exactly."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...encoders.sea_raft import FlowEstimate, SeaRaft
from ...encoders.sea_raft_config import SEA_RAFT_MINIATURE
from ..world.random_clips import draw_clip
from ..world.scenes import draw_scene, render
from ..world.sprite import FRAMES, Painted
from .stage import Stage, schedule_rate

STEPS, BATCH = 9000, 8
PEAK_RATE = 1.2e-3
POOL, FRESH = 300, 1
"""Number of clips that are held, and of those that are painted anew in every step."""
WORLD_SHARE = 0.4
"""Share of the clips that are the world's: half of its sprites are of one color, where only outlines move."""
LARGEST_RADIUS = 17.0
"""Largest radius of a random sprite in pixels, which the world's growing sprites reach."""
DISCOUNT = 0.85
"""Weight of a refinement's loss against the next one's (SEA-RAFT's gamma)."""
SPRITE_WEIGHT = 8.0
NOISE, BLURRED = 0.02, 0.3
"""Standard deviation of the noise on the training frames, and the share of them that is blurred as by a VAE.
"""


class Pairs(NamedTuple):
    """Adjacent frames `B 3 H W` in 0..255, the flow `B 2 H W` between them, and the sprite's mask `B H W`."""

    first: Tensor
    second: Tensor
    flow: Tensor
    mask_px: Tensor


def train_flow(build: Path, seed: int = 0, steps: int = STEPS) -> None:
    """Train the flow net in the build folder; a stage that was interrupted is continued."""
    build.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net = SeaRaft(SEA_RAFT_MINIATURE).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=1e-5)
    stage = Stage("flow", build, steps)
    parts = {"net": net, "optimizer": optimizer}
    done = stage.resume(parts)
    generator = torch.Generator().manual_seed(seed * 1000 + done)
    pool = [draw_training_clip(generator) for _ in range(POOL)]
    held = collect_pairs([draw_clip(torch.Generator().manual_seed(90 + i)) for i in range(8)])
    for step in range(done, stage.steps):
        for _ in range(FRESH):
            pool[int(torch.randint(POOL, (), generator=generator))] = draw_training_clip(generator)
        for group in optimizer.param_groups:
            group["lr"] = schedule_rate(PEAK_RATE, step, steps)
        chosen = torch.randint(POOL, (BATCH,), generator=generator)
        pairs = add_noise_and_blur(
            rotate_colors(draw_pairs([pool[i] for i in chosen], generator), generator), generator
        )
        loss = compute_sequence_loss(net.estimate_refinements(pairs.first, pairs.second), pairs)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % stage.report_every == 0:
            errors = measure_end_point_errors(net, held)
            stage.report(step + 1, loss=loss.item(), **errors._asdict())
        stage.save(step + 1, parts)


def load_trained_flow(build: Path) -> SeaRaft:
    """Load the flow net of stage 3, as far as it is trained."""
    net = SeaRaft(SEA_RAFT_MINIATURE)
    net.load_state_dict(torch.load(build / "flow.pt", weights_only=True)["net"])
    return net.freeze()


def draw_training_clip(generator: torch.Generator) -> Painted:
    """Draw a clip of random looks, or one of the world's."""
    if torch.rand((), generator=generator) < WORLD_SHARE:
        return render(draw_scene(generator))
    return draw_clip(generator, largest=LARGEST_RADIUS)


def draw_pairs(clips: list, generator: torch.Generator) -> Pairs:
    """Draw one pair of adjacent frames of each clip, in the order of time."""
    places = torch.randint(FRAMES - 1, (len(clips),), generator=generator).tolist()
    return Pairs(
        255 * torch.stack([clip.frames[t] for clip, t in zip(clips, places, strict=True)]),
        255 * torch.stack([clip.frames[t + 1] for clip, t in zip(clips, places, strict=True)]),
        torch.stack([clip.flow[t] for clip, t in zip(clips, places, strict=True)]),
        torch.stack([clip.mask_px[t] for clip, t in zip(clips, places, strict=True)]),
    )


def collect_pairs(clips: list) -> Pairs:
    """Return all pairs of adjacent frames of clips."""
    return Pairs(
        255 * torch.cat([clip.frames[:-1] for clip in clips]),
        255 * torch.cat([clip.frames[1:] for clip in clips]),
        torch.cat([clip.flow for clip in clips]),
        torch.cat([clip.mask_px[:-1] for clip in clips]),
    )


def rotate_colors(pairs: Pairs, generator: torch.Generator) -> Pairs:
    """Rotate the colors of each pair about mid gray, by a random rotation of RGB.

    A net that can mostly find the sprite by its brightness uses nothing else, and does not see red on gray.
    After a rotation no direction in color is special.
    """
    rotations = torch.linalg.qr(torch.randn(len(pairs.first), 3, 3, generator=generator)).Q

    def recolor(frames: Tensor) -> Tensor:
        return 127.5 + torch.einsum("bij,bjhw->bihw", rotations, frames - 127.5)

    return pairs._replace(first=recolor(pairs.first), second=recolor(pairs.second))


def add_noise_and_blur(pairs: Pairs, generator: torch.Generator) -> Pairs:
    """Add noise and blur to the pairs, because the net will see decoded predictions."""

    def degrade(frames: Tensor) -> Tensor:
        blurred = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        frames = torch.where(blur, blurred, frames)
        amount = 255 * NOISE * torch.rand(len(frames), 1, 1, 1, generator=generator)
        return frames + amount * torch.randn(frames.shape, generator=generator)

    blur = torch.rand(len(pairs.first), 1, 1, 1, generator=generator) < BLURRED
    return pairs._replace(first=degrade(pairs.first), second=degrade(pairs.second))


def compute_sequence_loss(estimates: list[FlowEstimate], pairs: Pairs) -> Tensor:
    """Return the L1 error of all refinements, where the last one and the sprite have the largest weights.

    SEA-RAFT's own mixture loss is not used: where nine pixels of ten stand still, a mixture calls the rest
    ambiguous and learns nothing of them.
    """
    weight = 1 + SPRITE_WEIGHT * pairs.mask_px
    last = len(estimates) - 1
    parts = [
        DISCOUNT ** (last - i) * ((estimate.flow - pairs.flow).abs().sum(1) * weight).sum() / weight.sum()
        for i, estimate in enumerate(estimates)
    ]
    return torch.stack(parts).sum()


class EndPointErrors(NamedTuple):
    """Mean end-point error of a flow in pixels, and that of zero flow for comparison."""

    everywhere: float
    on_sprite: float
    zero_everywhere: float
    zero_on_sprite: float


@torch.no_grad()
def measure_end_point_errors(net: SeaRaft, pairs: Pairs) -> EndPointErrors:
    """Measure the errors of the net's flow, and of zero flow, against the exact flow."""
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
