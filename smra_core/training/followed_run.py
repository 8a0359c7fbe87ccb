"""The run folder as the other processes of a training over several GPUs see it: they only read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .run_folder import RunFolder
from .state import TrainState


class FollowedRun(RunFolder):
    """Folder of a run that the first process writes: it locks it, logs the losses and saves the states."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock nothing; the first process holds the lock."""
        yield

    def save(self, state: TrainState) -> None:
        """Write nothing."""

    def log_losses(self, step: int, losses: Mapping[str, float | None]) -> None:
        """Write nothing."""

    def _make_folder(self, about: str) -> None:
        """Write nothing."""

    def _forget_losses_after(self, step: int) -> None:
        """Write nothing."""
