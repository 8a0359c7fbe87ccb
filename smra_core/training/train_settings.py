"""Settings of the training loop, with their defaults for a subject and for a motion."""

import math
from dataclasses import dataclass

from ..wan.settings import COUNT, NOT_NEGATIVE, POSITIVE, SEED, Limits, check_limits, declare_setting
from .learning_rate import CONSTANT, COSINE, LR_SCHEDULES
from .optimizer import ADAMW, LEAST_PRODIGY_RATE, OPTIMIZERS, PRODIGY


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the training loop."""

    steps: int = declare_setting(
        1000,
        "Training steps. More fit the data more closely, in the end too closely; raising it later extends "
        "the run.",
        COUNT,
    )
    batch_size: int = declare_setting(
        1,
        "Samples that go through the model at once. More give steadier steps and need more memory.",
        COUNT,
    )
    accumulate: int = declare_setting(
        2,
        "Batches that one step averages over. More give steadier steps and need more time.",
        COUNT,
    )
    learning_rate: float = declare_setting(
        1e-4,
        "Size of a step. Higher learns faster, and too high breaks the model; the paper's is 1e-4.",
        POSITIVE,
    )
    weight_decay: float = declare_setting(
        0.01,
        "AdamW's weight decay. Higher values keep the LoRA weaker and forget details.",
        NOT_NEGATIVE,
    )
    grad_clip: float = declare_setting(
        1.0, "Gradient norm above which a step is scaled down. 0 turns clipping off.", NOT_NEGATIVE
    )
    seed: int = declare_setting(0, "Random seed. Changing it starts a new run.", SEED)
    save_every: int = declare_setting(
        50,
        "Steps between two saved states. Raising it writes less often; a hard kill then loses more steps.",
        COUNT,
    )
    save_minutes: float = declare_setting(
        5.0,
        "Minutes after which the state is saved in any case. Raising it risks more work on slow cards.",
        Limits(most=math.inf, above=0),
    )
    optimizer: str = declare_setting(
        ADAMW,
        "Optimizer: 'adamw'; 'adamw-8bit', which keeps its state in a quarter of the memory and needs the "
        "package bitsandbytes; or 'prodigy', which finds the learning rate itself, wants learning_rate 1 "
        "and needs the package prodigyopt.",
        newer=True,
    )
    lr_schedule: str = declare_setting(
        CONSTANT,
        "Learning rate over the run: 'constant', or 'cosine', which falls to 0 at the last step and "
        "settles details. With 'cosine' another number of steps is another run.",
        newer=True,
    )
    warmup_steps: int = declare_setting(
        0,
        "Steps in which the learning rate rises to its full size. More protect the start of a run from "
        "too large steps.",
        NOT_NEGATIVE,
        newer=True,
    )
    ema_decay: float = declare_setting(
        0.0,
        "Share of the past that the moving average (EMA) of the LoRA keeps in a step; the average is what "
        "is saved. Higher averages over more steps, 0.99 over about 100, and 0 turns it off.",
        Limits(least=0, most=0.99999),
        newer=True,
    )
    keep_every: int = declare_setting(
        0,
        "Steps between two LoRA files that are kept on the way, to compare how far a run should go. Fewer "
        "keep more files; 0 keeps the last one alone.",
        NOT_NEGATIVE,
        newer=True,
    )
    held_out_every: int = declare_setting(
        0,
        "Steps between two measurements of the loss on the last item, which is then left out of training: "
        "it rises when the LoRA learns the others by heart. Fewer take more time; 0 trains on all.",
        NOT_NEGATIVE,
        newer=True,
    )

    def __post_init__(self):
        check_limits(self)
        for name, known in (("optimizer", OPTIMIZERS), ("lr_schedule", LR_SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is not known; give one of {', '.join(known)}."
                )
        if self.optimizer == PRODIGY and self.learning_rate < LEAST_PRODIGY_RATE:
            raise ValueError(
                f"optimizer 'prodigy' finds the learning rate itself and multiplies it by learning_rate, "
                f"which is {self.learning_rate}. Set learning_rate to 1."
            )
        if self.lr_schedule == COSINE and self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} of {self.steps} steps, which leaves none for the "
                "cosine. Give fewer, or lr_schedule 'constant'."
            )


SUBJECT_TRAIN = TrainSettings()
MOTION_TRAIN = TrainSettings(steps=400)
"""Defaults for a subject and for a motion, whose data is a single clip: 400 steps that average over 2 are 800
samples of it. The paper gives no number; the authors' release takes 400 samples of each picture, and 500 of
a clip.
"""
