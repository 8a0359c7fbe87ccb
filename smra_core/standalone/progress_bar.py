"""Progress bar of a training run in the terminal."""

from collections.abc import Callable

from tqdm import tqdm

from ..training.step_info import StepInfo


class TrainingBar:
    """A progress bar with rate, time left and the losses of the last step.

    As a context manager it gives the function to call after every step, and closes the bar at the end.
    """

    def __init__(self, label: str, shown: bool = True):
        self.bar = tqdm(desc=label, unit="step", disable=not shown)

    def __enter__(self) -> Callable[[StepInfo], None]:
        return self.update

    def update(self, info: StepInfo) -> None:
        """Advance the bar by a step; the first call of a resumed run starts it at the steps done before."""
        if self.bar.total is None:
            self.bar.total = info.steps
            self.bar.n = self.bar.initial = info.step - 1
        self.bar.set_postfix({name: f"{value:.4f}" for name, value in info.losses.items()}, refresh=False)
        self.bar.update()

    def __exit__(self, *exception) -> None:
        self.bar.close()
