"""Settings for training and sampling with the miniature, in the demo and in the bench."""

from ..training.motion_settings import MotionSettings
from ..training.sura import SubjectSettings
from ..training.train_settings import TrainSettings
from ..wan.sampler import SamplingSettings
from .world.sprite import FRAMES, SIZE

SUBJECT = SubjectSettings(width=SIZE, height=SIZE, projector_width=256)
MOTION = MotionSettings(
    width=SIZE,
    height=SIZE,
    frames=FRAMES,
    decode="exact",
    shift=3.0,
    weighted_velocity=False,
    mora_share=0.3,
)
"""Motion settings by the bench of arms (bench/README.md), which differ from the paper's in three things.

The shift is that of the sampling, and all noise levels count the same: a motion is learned at high noise, and
in half of the steps. Every step decodes the whole clip, as in the paper. The flow loss has 30 % of the
gradient, because at the paper's weight it changes nothing that is seen here, and at 300 times that weight the
motion is recognized less often once a subject's LoRA is added.
"""
# A tiny network learns with a larger learning rate, and from more samples in a step, than a large one. A
# motion trains 50 steps: on the whole clip each takes seconds of a CPU, and 50 at shift 3 do what 100 did as
# released.
SUBJECT_TRAINING = TrainSettings(steps=100, batch_size=8, accumulate=1, learning_rate=2e-3)
MOTION_TRAINING = TrainSettings(steps=50, batch_size=1, accumulate=1, learning_rate=2e-3)
SAMPLING = SamplingSettings(
    steps=50, shift=3.0, guidance=3.0, width=SIZE, height=SIZE, frames=FRAMES, fps=8, seed=1
)
