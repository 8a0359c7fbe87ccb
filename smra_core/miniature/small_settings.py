"""Settings with which the miniature's LoRAs are trained and sampled, in the demo and in the bench."""

from ..training.mora import MotionSettings
from ..training.sura import SubjectSettings
from ..training.trainer import TrainSettings
from ..wan.sampler import SamplingSettings
from .world.sprite import FRAMES, SIZE

SUBJECT = SubjectSettings(width=SIZE, height=SIZE, projector_width=256)
MOTION = MotionSettings(
    width=SIZE, height=SIZE, frames=FRAMES, decode="windowed", window=1, context=1, mora_weight=30.0
)
"""The weight gives the flow loss the share of the whole that it has at the paper's size: there a moving thing
fills the frame and a pixel of error counts 1/320, here a sprite fills a tenth of it.
"""
# A tiny net learns with larger steps and on more samples a step than a large one.
SUBJECT_TRAINING = TrainSettings(steps=100, batch_size=8, accumulate=1, learning_rate=2e-3)
MOTION_TRAINING = TrainSettings(steps=100, batch_size=1, accumulate=1, learning_rate=2e-3)
SAMPLING = SamplingSettings(
    steps=50, shift=3.0, guidance=3.0, width=SIZE, height=SIZE, frames=FRAMES, fps=8, seed=1
)
