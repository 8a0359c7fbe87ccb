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
"""Motion settings whose `mora_weight` gives the flow loss the share of the whole loss that it has at the
paper's size: there a moving subject fills the frame and an error of one pixel counts 1/320, here a sprite
fills a tenth of the frame.
"""
# A tiny network learns with a larger learning rate, and from more samples in a step, than a large one.
SUBJECT_TRAINING = TrainSettings(steps=100, batch_size=8, accumulate=1, learning_rate=2e-3)
MOTION_TRAINING = TrainSettings(steps=100, batch_size=1, accumulate=1, learning_rate=2e-3)
SAMPLING = SamplingSettings(
    steps=50, shift=3.0, guidance=3.0, width=SIZE, height=SIZE, frames=FRAMES, fps=8, seed=1
)
