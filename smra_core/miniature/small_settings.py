"""Settings for training and sampling with the miniature, in the demo and in the bench."""

from ..training.mora import MotionSettings
from ..training.sura import SubjectSettings
from ..training.trainer import TrainSettings
from ..wan.sampler import SamplingSettings
from .world.sprite import FRAMES, SIZE

SUBJECT = SubjectSettings(width=SIZE, height=SIZE, projector_width=256)
MOTION = MotionSettings(
    width=SIZE, height=SIZE, frames=FRAMES, decode="windowed", window=1, context=1, mora_weight=30.0
)
"""Motion settings with 30 times the paper's `mora_weight`.

The flow loss at the paper's weight of 1 is not smaller here than at the paper's size: a video that stands
still costs 0.006 to 0.010 on the miniature, and about 4 / 576 / 3 = 0.0023 at 576 px, where a third of the
picture moves by 4 px a frame. With 30 the loss is therefore far above the paper's share. It was chosen for a
network that is small and trained for 100 steps, and is no measure of what a real WAN needs.
"""
# A tiny network learns with a larger learning rate, and from more samples in a step, than a large one.
SUBJECT_TRAINING = TrainSettings(steps=100, batch_size=8, accumulate=1, learning_rate=2e-3)
MOTION_TRAINING = TrainSettings(steps=100, batch_size=1, accumulate=1, learning_rate=2e-3)
SAMPLING = SamplingSettings(
    steps=50, shift=3.0, guidance=3.0, width=SIZE, height=SIZE, frames=FRAMES, fps=8, seed=1
)
