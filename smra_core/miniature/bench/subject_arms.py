"""Arms of the bench that train a subject LoRA, each run by the training loop itself."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...lora.adapter import Lora, init_lora
from ...training.step_info import StepInfo
from ...training.subject import prepare_subject
from ...training.sura import SubjectObjective, SubjectSample, SubjectSettings
from ...training.trainer import train_lora
from ...wan.noise_range import WHOLE, NoiseRange
from ..small_settings import SUBJECT, SUBJECT_TRAINING
from ..weight_paths import DINOV2_FILE
from .arm_run import ArmRun, Nets
from .run import open_bench
from .stacked_lora import StackedLora
from .subject_objectives import (
    ArmObjective,
    DecodedObjective,
    HeldObjective,
    MotionBoothObjective,
    StoppedObjective,
    encode_known_clips,
    fit_projector,
)


@dataclass(frozen=True)
class SubjectArm:
    """One way to train a subject LoRA."""

    name: str
    settings: SubjectSettings = SUBJECT
    region: float = 1.0
    """Weight of the region loss."""
    aligned_above: float = 0.0
    """Noise level above which SuRA counts."""
    held_projector: bool = False
    """Whether the projector is fitted on the frozen model's tokens of other pictures first, and then held."""
    stopped_projector: bool = False
    """Whether the projector is held once its cosine stands still."""
    words: float = 0.0
    """Weight of MotionBooth's cross-attention loss."""
    clips: float = 0.0
    """Weight of the velocity loss of known clips, MotionBooth's video preservation."""
    decoded: bool = False
    """Whether DINOv2's features of the decoded prediction are aligned in place of tokens."""
    accumulate: int = 1
    pictures: int = 3
    applied: NoiseRange = WHOLE
    """Noise levels at which the LoRA is on in sampling."""
    cases: tuple[str, ...] = ("ball", "badge")
    seeds: int = 2


class SubjectTrainings:
    """Trainings of subject LoRAs, one after the other."""

    def __init__(self, runs: Sequence[ArmRun], folder: Path, nets: Nets):
        """Encode the pictures of the runs' subjects; the folder keeps them."""
        self.runs, self.nets, self.bench = runs, nets, open_bench(folder)

    def follow(self, steps: Sequence[int]) -> Iterator[tuple[int, StackedLora]]:
        """Train all runs; yield each of the steps, in rising order, with the LoRAs after it."""
        trained = [self._train(run, steps) for run in self.runs]
        for step in steps:
            yield step, StackedLora([loras[step] for loras in trained], self.nets.device)

    def _train(self, run: ArmRun, steps: Sequence[int]) -> Mapping[int, Lora]:
        """Train one run; return copies of its LoRA after each of the steps."""
        settings, denoiser, kept = run.arm.settings, self.nets.denoiser, {}
        lora = init_lora(denoiser.spec, settings.plan, settings.rank, torch.Generator().manual_seed(run.seed))
        if not run.arm.region and not settings.sura_weight:
            return dict.fromkeys(steps, lora)
        for pair in lora.values():
            pair.to(self.nets.device)

        def keep(info: StepInfo) -> None:
            if info.step in steps:
                kept[info.step] = copy.deepcopy(lora)

        training = replace(SUBJECT_TRAINING, steps=max(steps), accumulate=run.arm.accumulate, seed=run.seed)
        samples = self._prepare(run)
        train_lora(denoiser, lora, self._make_objective(run, samples), samples, training, on_step=keep)
        return kept

    def _prepare(self, run: ArmRun) -> list[SubjectSample]:
        images = self.bench.write_images(run.case)[: run.arm.pictures]
        return prepare_subject(self.bench.backend, images, DINOV2_FILE)

    def _make_objective(self, run: ArmRun, samples: Sequence[SubjectSample]) -> SubjectObjective:
        arm, width = run.arm, self.nets.denoiser.spec.dim
        common = (arm.settings, width, samples[0].features.shape[-1], run.seed, arm.region, arm.aligned_above)
        if arm.decoded:
            return DecodedObjective(*common, decoder=self.nets.decoder)
        if arm.held_projector:
            projector = fit_projector(self.bench.backend, self.nets.denoiser, arm.settings)
            return HeldObjective(*common, projector=projector)
        if arm.stopped_projector:
            return StoppedObjective(*common)
        if arm.words or arm.clips:
            return MotionBoothObjective(
                *common,
                blocks=self.nets.denoiser.dit.blocks,
                words=("sks", run.case),
                weights={"words": arm.words, "clips": arm.clips},
                clips=encode_known_clips(self.bench.backend) if arm.clips else None,
            )
        return ArmObjective(*common)
