"""The pack's own wire types, and the options that travel on them, with the defaults of unwired inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ...smra_core.lora.applied_range import AS_TRAINED
from ...smra_core.lora.plan import SparsePlan
from ...smra_core.lora.schedule import Strengths
from ...smra_core.training.motion_settings import MotionSettings
from ...smra_core.training.sura import SubjectSettings
from ...smra_core.training.train_settings import TrainSettings
from ...smra_core.wan.noise_range import WHOLE, NoiseRange

# These three carry the path of a weight file: a finished run must not load a network, and none stays in
# memory.
DinoV2Type = io.Custom("SMRA_DINOV2")
SeaRaftType = io.Custom("SMRA_SEA_RAFT")
SamType = io.Custom("SMRA_SAM")

Schedule = io.Custom("SMRA_SCHEDULE")
"""Carries a StrengthSchedule."""

TrainingOptionsType = io.Custom("SMRA_TRAINING_OPTIONS")
OptimizerOptionsType = io.Custom("SMRA_OPTIMIZER_OPTIONS")
NoiseRangeType = io.Custom("SMRA_NOISE_RANGE")
"""Carries a NoiseRange."""
LossOptionsType = io.Custom("SMRA_LOSS_OPTIONS")
StrengthOptionsType = io.Custom("SMRA_STRENGTH_OPTIONS")
LoaderOptionsType = io.Custom("SMRA_LOADER_OPTIONS")
GridType = io.Custom("SMRA_GRID")
"""Carries a Grid."""


@dataclass(frozen=True)
class Grid:
    """Cells of a grid on disk."""

    name: str
    """Name of the grid's folder."""
    keys: tuple[str, ...]
    """Names of the cells' files, in the order in which they are shown."""


@dataclass(frozen=True)
class OptimizerOptions:
    """Settings of a run beside those of SMRA Training Options."""

    train: Mapping[str, Any] = field(default_factory=dict)
    """Values of fields of TrainSettings; the others keep their defaults."""
    preserve_weight: float = SubjectSettings().preserve_weight
    """Weight of base preservation in both losses."""


@dataclass(frozen=True)
class TrainingOptions:
    """Settings of a training run beside its losses."""

    train: TrainSettings = TrainSettings()
    """Everything but `steps`, which the training node sets."""
    plans: tuple[SparsePlan, SparsePlan] = (SubjectSettings().plan, MotionSettings().plan)
    """Layers that get the LoRA: those of a subject and those of a motion."""
    noise_range: NoiseRange = WHOLE
    """Noise levels that training draws from."""
    own_sizes: bool = False
    """Whether each clip and picture keeps its own shape, in place of being cropped to one size."""
    preserve_weight: float = SubjectSettings().preserve_weight
    """Weight of base preservation in both losses."""
    color_copies: int = MotionSettings().color_copies
    """Copies of each clip of a motion in other colors."""

    @property
    def loss_settings(self) -> dict[str, Any]:
        """Fields of SubjectSettings and MotionSettings that are chosen here."""
        return {"noise_range": self.noise_range, "preserve_weight": self.preserve_weight}


@dataclass(frozen=True)
class LossOptions:
    """Rarely changed settings of both losses; a training node takes those of its own kind."""

    subject: SubjectSettings = SubjectSettings()
    motion: MotionSettings = MotionSettings()
    tiny_decoder: Path | None = None
    """Weight file of a tiny decoder, or None."""


@dataclass(frozen=True)
class StrengthOptions:
    """Strengths before and after T_point, in place of a preset."""

    subject: Strengths
    motion: Strengths


@dataclass(frozen=True)
class LoaderOptions:
    """What a Sparse LoRA Loader uses of its two files, how it applies them, and at which noise levels."""

    subject_plan: SparsePlan
    motion_plan: SparsePlan
    constant_lora: str
    """One of apply_loras.CONSTANT_MODES."""
    noise_range: str = AS_TRAINED
    """One of applied_range.APPLIED_RANGES."""


def make_loader_options_input() -> io.Input:
    """Return the optional input of a Sparse LoRA Loader that takes LoaderOptions."""
    return LoaderOptionsType.Input(
        "loader_options",
        optional=True,
        tooltip="Other layers than the paper's, and how and at which noise levels LoRAs are applied, from "
        "SMRA Loader Options. Not connected, the defaults of that node hold.",
    )
