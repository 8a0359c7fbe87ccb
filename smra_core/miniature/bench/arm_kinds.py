"""The two kinds of arms, as `run_arms` takes them."""

from collections.abc import Sequence
from pathlib import Path

from ...training.mora import MotionSample
from ...training.motion import prepare_motion
from ..weight_paths import SEA_RAFT_FILE
from ..world.scenes import HELD_OUT_MOTIONS
from .arm_clips import list_motion_scenes, list_subject_scenes, measure_motion, measure_subject
from .arm_run import ArmRun, Nets
from .arms import STACKS
from .motion_arms import StackedMotion
from .run import open_bench
from .run_arms import ArmKind
from .subject_arm_list import SUBJECT_ARMS
from .subject_arms import SubjectTrainings


def start_motions(runs: Sequence[ArmRun], folder: Path, nets: Nets) -> StackedMotion:
    """Start the trainings of motion LoRAs, side by side."""
    return StackedMotion(runs, encode_references(folder), nets)


def encode_references(folder: Path) -> dict[str, MotionSample]:
    """Encode the clips of all held-out motions, on the CPU."""
    bench = open_bench(folder)
    clips = [bench.write_clip(motion) for motion in HELD_OUT_MOTIONS]
    return dict(zip(HELD_OUT_MOTIONS, prepare_motion(bench.backend, clips, SEA_RAFT_FILE), strict=True))


MOTIONS = ArmKind(
    file="arms.jsonl",
    stacks=STACKS,
    steps=(25, 50, 100, 200),
    start=start_motions,
    list_scenes=list_motion_scenes,
    references=("T s1w", "T s3u"),
    column="error",
    measure=measure_motion,
)
SUBJECTS = ArmKind(
    file="subject_arms.jsonl",
    stacks=[[arm] for arm in SUBJECT_ARMS],
    steps=(25, 50, 100),
    start=SubjectTrainings,
    list_scenes=list_subject_scenes,
    references=("R", "R, 1 picture", "R, figures", "R, figures, 1 picture"),
    column="likeness",
    measure=measure_subject,
)
