"""Learning rate over the steps of a run: linear warm-up, then constant or along a cosine."""

import math

CONSTANT, COSINE = "constant", "cosine"
LR_SCHEDULES = (CONSTANT, COSINE)


def learning_rate_factor(step: int, steps: int, warmup_steps: int = 0, schedule: str = CONSTANT) -> float:
    """Return the factor on the learning rate in a step, counted from 1, of a run.

    It rises to 1 in equal parts over the warm-up. After that it stays there, or falls along half a cosine,
    from 1 in the first step after the warm-up to nearly 0 in the last step of the run.
    """
    if step <= warmup_steps:
        return step / warmup_steps
    if schedule == CONSTANT:
        return 1.0
    share = (step - 1 - warmup_steps) / (steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * share))
