"""Settings of the motion LoRA."""

from dataclasses import dataclass

from ..data.motion_clip import FEWEST_FRAMES
from ..lora.plan import MOTION, SparsePlan
from ..wan.noise_range import NOISE_RANGE_HELP, WHOLE, NoiseRange
from ..wan.settings import COUNT, NOT_NEGATIVE, POSITIVE, Limits, check_limits, declare_setting
from ..wan.spec import LATENTS_21, latent_frames
from .gradient_share import SHARE
from .preservation import PRESERVE_HELP

CLEAN_BELOW = 0.9
"""Noise level above which flow_weight `clean` is 0: the predicted video is a blur whose flow says little."""
DECODE_MODES = ("auto", "exact", "exact-low-memory", "windowed", "tiny")
"""Ways to decode. `exact` decodes the whole clip in every step (paper); `exact-low-memory` does so too, with
the autograd graph of one chunk at a time; `windowed` decodes a window of the clip; `tiny` decodes the whole
clip with a small decoder; `auto` leaves the choice to decode_choice.
"""


@dataclass(frozen=True)
class MotionSettings:
    """Settings of the motion LoRA: the paper's values, and our choices where the paper is silent."""

    plan: SparsePlan = declare_setting(
        MOTION,
        "Layers that get the LoRA: the name of a plan, or roles such as v,o,ffn.0,ffn.2. 'motion' is the "
        "paper's: it leaves room for a subject LoRA.",
    )
    rank: int = declare_setting(
        64,
        "Rank of the LoRA. Higher holds more detail of the motion, and more of the clip's looks.",
        COUNT,
    )
    width: int = declare_setting(
        576,
        "Width that the clip is resized and cropped to, a multiple of 16 (of 32 for TI2V-5B). Higher "
        "needs more memory.",
    )
    height: int = declare_setting(
        320,
        "Height that the clip is resized and cropped to, a multiple of 16 (of 32 for TI2V-5B). Higher "
        "needs more memory.",
    )
    frames: int = declare_setting(
        49,
        "Frames of the clip, 4n+1. More show more of the motion and need more memory and time.",
        Limits(FEWEST_FRAMES),
    )
    mora_weight: float = declare_setting(
        1.0,
        "Weight of the optical-flow loss (MoRA; alpha in the paper). Higher follows the clip's motion "
        "more closely; 0 turns it off, and SEA-RAFT and the decoder are then not needed.",
        NOT_NEGATIVE,
    )
    mora_share: float = declare_setting(
        0.0,
        "Share of a step that the optical-flow loss has at every noise level, in place of its weight: 0.3 is "
        "30 % of the LoRA's gradient. Higher follows the clip's motion more closely; it takes one more "
        "backward pass. 0 keeps the weight (paper).",
        SHARE,
        newer=True,
    )
    debias: bool = declare_setting(
        True,
        "Add MotionDirector's debiased loss, which removes what all frames have in common, so that the "
        "LoRA learns motion, not appearance. The authors' code does.",
    )
    difference_weight: float = declare_setting(
        0.0,
        "Weight of the velocity error's change from one latent to the next, added to the temporal loss. "
        "Higher follows the motion more closely than the looks, without decoding anything; 3 is a good "
        "start. 0 turns it off (paper).",
        NOT_NEGATIVE,
        newer=True,
    )
    flow_weight: str = declare_setting(
        "none",
        "How the flow loss counts by noise level: 'none' counts all levels the same (paper); 'clean' "
        "counts it less at high noise, where the predicted video is a blur.",
    )
    weighted_velocity: bool = declare_setting(
        True,
        "Weight the velocity loss by noise level, most in the middle, as the authors train. Off, all "
        "levels count the same.",
    )
    shift: float = declare_setting(
        1.0,
        "Shift of the noise levels in training. Higher trains more at high noise, on layout rather than "
        "detail.",
        POSITIVE,
    )
    noise_range: NoiseRange = declare_setting(WHOLE, NOISE_RANGE_HELP, newer=True)
    first_frame_share: float = declare_setting(
        0.0,
        "Share of the steps in which the model is given the clip's first frame, as for image to video. "
        "Higher trains more on that; 0 trains text to video alone. Only TI2V-5B takes it.",
        Limits(0, 1),
        newer=True,
    )
    count_given: bool = declare_setting(
        False,
        "Count the velocity loss of frames that the model is given, as in image to video. On, the LoRA also "
        "learns to repeat them.",
        newer=True,
    )
    color_copies: int = declare_setting(
        0,
        "Copies of each clip in other colors, the same in all of a copy's frames, that are trained on "
        "beside it and seen as often. More are meant to keep more of the clip's looks out of the LoRA; 0 "
        "trains on the clips alone.",
        Limits(0, 8),
        newer=True,
    )
    preserve_weight: float = declare_setting(0.0, PRESERVE_HELP, NOT_NEGATIVE, newer=True)
    decode: str = declare_setting(
        "auto",
        "How a step decodes the video for the flow loss: 'windowed' a part of it, drawn anew each time; "
        "'exact' all of it, as in the paper, for more memory and time; 'exact-low-memory' the same in "
        "less memory, slower; 'tiny' all of it with a small decoder. 'auto' takes the first of 'exact', "
        "'exact-low-memory' and 'tiny' that fits into memory.",
    )
    window: int = declare_setting(
        3,
        "Latents (4 frames each) that a 'windowed' step compares. More show longer motions at once and "
        "need more memory and time. (The authors' code: 6 of the 13 latents of 49 frames.)",
    )
    windows_per_step: int = declare_setting(
        1,
        "Windows that a 'windowed' step compares, spread over the clip. More show more of the motion at once "
        "and take more time, but no more memory.",
        COUNT,
        newer=True,
    )
    context: int = declare_setting(
        2,
        "Latents decoded before a window, to warm up the decoder. More come nearer to 'exact' and need "
        "more memory and time.",
    )

    def __post_init__(self):
        check_limits(self)
        LATENTS_21.check_size(self.width, self.height)
        latent_frames(self.frames)
        if self.decode not in DECODE_MODES:
            raise ValueError(f"decode {self.decode!r} is not known; give one of {', '.join(DECODE_MODES)}.")
        for name in ("window", "context"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1 latent, got {getattr(self, name)}. For the whole clip choose "
                    "decode 'exact'."
                )
        if self.flow_weight not in ("none", "clean"):
            raise ValueError(f"flow_weight {self.flow_weight!r} is not known; give 'none' or 'clean'.")
        if self.flow_weight == "clean" and self.noise_range.low >= CLEAN_BELOW:
            raise ValueError(
                f"flow_weight 'clean' counts no noise level above {CLEAN_BELOW}, and the noise range "
                f"{self.noise_range} lies above it. Choose flow_weight 'none'."
            )
