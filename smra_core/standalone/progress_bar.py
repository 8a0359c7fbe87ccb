"""A training run as a bar on the terminal."""

from collections.abc import Callable

from tqdm import tqdm

from ..training.trainer import StepInfo


class TrainingBar:
    """A bar with rate, time left and the last step's losses."""

    def __init__(self, label: str):
        self.bar = tqdm(desc=label, unit="step")

    def __enter__(self) -> Callable[[StepInfo], None]:
        return self.update

    def update(self, info: StepInfo) -> None:
        if self.bar.total is None:
            self.bar.total = info.steps
            self.bar.n = self.bar.initial = info.step - 1
        self.bar.set_postfix({name: f"{value:.4f}" for name, value in info.losses.items()}, refresh=False)
        self.bar.update()

    def __exit__(self, *exception) -> None:
        self.bar.close()
