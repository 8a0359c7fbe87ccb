"""Arms of the bench that train a motion LoRA: their losses, for many runs at once (see stacked_lora)."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...decoding.windows import DecodeWindow, take_whole_clip, warm_windows
from ...lora.adapter import init_lora
from ...lora.plan import MOTION, SparsePlan
from ...training.mora import MotionSample, flow_alignment_loss
from ...training.random_stream import make_generator
from ...training.temporal_loss import debias
from ...wan.flow_matching import add_noise, shift_sigma, velocity_target, velocity_weight, x0_from_velocity
from ...wan.noise_range import WHOLE, NoiseRange
from ...wan.spec import frames_of_latent
from ..small_settings import MOTION as SMALL_MOTION
from ..small_settings import MOTION_TRAINING
from ..world.scenes import HELD_OUT_MOTIONS
from .arm_run import ArmRun, Nets
from .stacked_lora import (
    Gradients,
    StackedLora,
    add_gradients,
    apply_gradients,
    balance,
    clip_runs,
    injected_stack,
    measure_norms,
    scale_runs,
)

_LATENTS_AT_ONCE = 160
"""Number of compared latents, of all samples, that are in one graph."""


@dataclass(frozen=True)
class MotionArm:
    """One way to train a motion LoRA."""

    name: str
    plan: SparsePlan = MOTION
    shift: float = 1.0
    weighted: bool = True
    """Whether the temporal loss is weighted by noise level, as the authors train."""
    lowest: float = 0.0
    """Noise level above which is trained."""
    applied: NoiseRange = WHOLE
    """Noise levels at which the LoRA is on in sampling."""
    temporal: float = 1.0
    mora: float = 0.0
    share: float = 0.0
    """Share of the step that MoRA's gradient has, in place of a constant weight; 0 is off."""
    mora_lowest: float = 0.0
    """Noise level above which MoRA counts."""
    window: int = 0
    """Latents of a window; 0 is the whole clip."""
    context: int = 2
    windows: int = 1
    """Windows that a step compares, drawn without replacement."""
    in_turn: bool = False
    """Whether windows come in turn over the steps: each once before any comes again."""
    difference: float = 0.0
    """Weight of the velocity error's differences between adjacent latent frames."""
    accumulate: int = 1
    cases: tuple[str, ...] = HELD_OUT_MOTIONS
    seeds: int = 3


class StackedMotion:
    """Trainings of motion LoRAs with one plan, side by side."""

    def __init__(self, runs: Sequence[ArmRun], samples: Mapping[str, MotionSample], nets: Nets):
        """Start the runs; `samples` are the encoded clips by motion."""
        self.runs, self.nets = runs, nets
        spec = nets.denoiser.spec
        loras = [
            init_lora(spec, run.arm.plan, SMALL_MOTION.rank, torch.Generator().manual_seed(run.seed))
            for run in runs
        ]
        self.stack = StackedLora(loras, nets.device)
        self.samples = [samples[run.case] for run in runs]
        self.latents = self._gather("latents")
        self.context = self._gather("context")
        self.reference = self._gather("reference_flow")
        train = MOTION_TRAINING
        self.optimizer = torch.optim.AdamW(
            self.stack.parameters, lr=train.learning_rate, weight_decay=train.weight_decay
        )
        self.grad_clip, self.step = train.grad_clip, 0
        self.windows = self._prepare_windows(samples)

    def _gather(self, field: str) -> Tensor:
        return torch.stack([getattr(sample, field) for sample in self.samples]).to(self.nets.device)

    def _prepare_windows(self, samples: Mapping[str, MotionSample]) -> list[list[DecodeWindow]]:
        made: dict[tuple, list[DecodeWindow]] = {}
        for arm, motion, _ in self.runs:
            key = motion, arm.window, arm.context
            if key not in made:
                latents = samples[motion].latents.to(self.nets.device)
                made[key] = (
                    warm_windows(latents, self.nets.decoder, arm.window, arm.context)
                    if arm.window
                    else take_whole_clip(latents.shape[1])
                )
        return [made[run.case, run.arm.window, run.arm.context] for run in self.runs]

    def follow(self, steps: Sequence[int]) -> Iterator[tuple[int, StackedLora]]:
        """Train all runs; yield each of the steps, in rising order, with the LoRAs after it."""
        for step in steps:
            while self.step < step:
                self.train_step()
            yield step, self.stack

    def train_step(self) -> None:
        """Train every run by one step."""
        self.step += 1
        parts = [self._compute_gradients(part) for part in range(max(r.arm.accumulate for r in self.runs))]
        gradients = clip_runs(add_gradients(parts), self.grad_clip)
        apply_gradients(self.optimizer, self.stack.parameters, gradients)

    def _compute_gradients(self, part: int) -> Gradients:
        """Compute the gradients of one micro-batch; runs that accumulate fewer take no part."""
        shape = self.latents.shape[1:]
        draws = [draw_step(run, self.step, part, shape) for run in self.runs]
        levels, noise, anchor = (torch.stack(column) for column in zip(*draws, strict=True))
        sigma, noise, anchor = (each.to(self.nets.device) for each in (levels, noise, anchor))
        noisy = add_noise(self.latents, noise, sigma)
        target = velocity_target(self.latents, noise)
        with injected_stack(self.nets.denoiser.linears(), self.stack):
            velocity = self.nets.denoiser.velocity(noisy, sigma, self.context).velocity
        active = self._collect(lambda arm: (part < arm.accumulate) / arm.accumulate)
        factors = (active.cpu() * self._compute_level_weights(levels)).to(self.nets.device)
        first = factors * self._compute_velocity_loss(velocity, target, anchor)
        plain = torch.autograd.grad(first.sum(), self.stack.parameters, retain_graph=True)
        x0 = x0_from_velocity(noisy, velocity, sigma)
        with_mora = [
            index
            for index, (arm, _, _) in enumerate(self.runs)
            if (arm.mora or arm.share) and part < arm.accumulate and levels[index] > arm.mora_lowest
        ]
        if not with_mora:
            return list(plain)
        pull = self._compute_flow_gradient(x0.detach(), with_mora, part)
        pull = pull * active.view(-1, 1, 1, 1, 1)
        aligned = torch.autograd.grad(x0, self.stack.parameters, pull)
        weight = self._collect(lambda arm: arm.mora)
        share = self._collect(lambda arm: arm.share)
        told = balance(measure_norms(aligned), measure_norms(plain), share)
        return add_gradients([plain, scale_runs(aligned, torch.where(share > 0, told, weight))])

    def _collect(self, read: Callable[[MotionArm], float]) -> Tensor:
        values = [float(read(run.arm)) for run in self.runs]
        return torch.tensor(values, device=self.nets.device)

    def _compute_level_weights(self, levels: Tensor) -> Tensor:
        """Return the weight `R` of the velocity losses at noise levels `R`, on the CPU."""
        weights = torch.ones_like(levels)
        for shift in {run.arm.shift for run in self.runs if run.arm.weighted}:
            chosen = torch.tensor([run.arm.weighted and run.arm.shift == shift for run in self.runs])
            weights[chosen] = velocity_weight(levels[chosen], shift)
        return weights

    def _compute_velocity_loss(self, velocity: Tensor, target: Tensor, anchor: Tensor) -> Tensor:
        """Return the losses `R` on the velocity, as each arm adds them up."""
        error = ((velocity - target) ** 2).flatten(1).mean(1)
        debiased = ((debias(velocity, anchor) - debias(target, anchor)) ** 2).flatten(1).mean(1)
        moved = ((velocity - target).diff(dim=2) ** 2).flatten(1).mean(1)
        temporal = self._collect(lambda arm: arm.temporal)
        return temporal * (error + debiased) + self._collect(lambda arm: arm.difference) * moved

    def _compute_flow_gradient(self, x0: Tensor, chosen: Sequence[int], part: int) -> Tensor:
        """Return the gradient `R 16 f h w` of L_MoRA of the chosen runs, of the windows that each draws.

        As in decoding.flow_gradient, the graph of a few samples at a time is kept.
        """
        jobs = defaultdict(list)
        for index in chosen:
            for number in self._draw_windows(index, part):
                window = self.windows[index][number]
                jobs[window.latents, window.start, window.small_stages_only].append((index, window))
        gradient = torch.zeros_like(x0)
        for (compared, *_), members in jobs.items():
            size = max(1, _LATENTS_AT_ONCE // len(compared))
            for begin in range(0, len(members), size):
                indices, windows = map(list, zip(*members[begin : begin + size], strict=True))
                inputs = x0[indices].requires_grad_()
                losses = self._compare(inputs, self.reference[indices], windows)
                weights = [
                    window.weight / self._count_windows(index)
                    for index, window in zip(indices, windows, strict=True)
                ]
                loss = (losses * x0.new_tensor(weights)).sum()
                gradient.index_add_(
                    0, torch.tensor(indices, device=x0.device), *torch.autograd.grad(loss, inputs)
                )
        return gradient

    def _compare(self, x0: Tensor, reference: Tensor, windows: Sequence[DecodeWindow]) -> Tensor:
        """Return the flow loss `B` of one window of each sample; the windows have the same place."""
        compared, start, _, skipped, _ = windows[0]
        state = None
        if windows[0].state is not None:
            states = zip(*[window.state for window in windows], strict=True)
            state = tuple(torch.cat(tensors).to(x0.device) for tensors in states)
        depth = (skipped,) if skipped else ()
        pixels = self.nets.decoder.finish(x0[:, :, start : compared.stop], state, *depth)
        begin = max(frames_of_latent(compared.start).start - 1, 0)
        pairs = slice(begin, frames_of_latent(compared.stop - 1).stop - 1)
        frames = (pixels[:, :, begin - frames_of_latent(start + skipped).start :] + 1) * 127.5
        before, after = (part.transpose(1, 2).flatten(0, 1) for part in (frames[:, :, :-1], frames[:, :, 1:]))
        flow = self.nets.flow_net.flow(before, after).unflatten(0, (len(x0), -1))
        return flow_alignment_loss(flow, reference[:, pairs])

    def _count_windows(self, index: int) -> int:
        return min(self.runs[index].arm.windows, len(self.windows[index]))

    def _draw_windows(self, index: int, part: int) -> list[int]:
        """Draw the numbers of the windows that a run compares in this step."""
        arm, _, seed = self.runs[index]
        total, count = len(self.windows[index]), self._count_windows(index)
        first = ((self.step - 1) * arm.accumulate + part) * count

        def draw_order(epoch: int) -> list[int]:
            return torch.randperm(total, generator=make_generator(seed, "windows", epoch)).tolist()

        if arm.in_turn:
            return [draw_order(place // total)[place % total] for place in range(first, first + count)]
        return draw_order(first)[:count]


def draw_step(run: ArmRun, step: int, part: int, shape: torch.Size) -> Iterator[Tensor]:
    """Draw a run's noise level, noise and anchor, as the training loop and the objective do."""
    generator = make_generator(run.seed, step, part)
    uniform = 1 - torch.rand(1, generator=generator)
    lowest = run.arm.lowest / (run.arm.shift - (run.arm.shift - 1) * run.arm.lowest)
    sigma = shift_sigma(lowest + (1 - lowest) * uniform, run.arm.shift)[0]
    noise = torch.randn((1, *shape), generator=generator)[0]
    yield from (sigma, noise, torch.randint(shape[1], (1,), generator=generator)[0])
