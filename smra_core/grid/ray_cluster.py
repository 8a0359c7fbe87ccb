"""Run a grid's commands on a Ray cluster; results go to the grid's folder, which all nodes share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .command_run import CommandEnd, run_command

WORKER_TRIES = 3
"""Times that Ray starts a command again whose worker or node has died."""


class RayCluster:
    """Runs commands as Ray tasks, each with the GPUs that it needs; Ray queues and places them."""

    def __init__(self, address: str | None):
        """Connect to the cluster at `address` (`auto` for the one that runs here); None starts one.

        On a cluster without GPUs a command takes one CPU. Raises ImportError when Ray is missing.
        """
        self.ray = _import_ray()
        # Workers are processes of Ray; what they print goes to the logs of the grid.
        self.ray.init(address=address, log_to_driver=False, ignore_reinit_error=False)
        self._gpus = self.ray.cluster_resources().get("GPU", 0)
        self._run = self.ray.remote(max_retries=WORKER_TRIES)(run_command)
        self._tasks: dict[Any, Any] = {}
        """Running tasks, and which of the grid's tasks they are."""

    def __enter__(self) -> "RayCluster":
        return self

    def has_room(self, gpus: int) -> bool:
        """Return True, as Ray queues what cannot start yet; ValueError if the cluster has too few GPUs."""
        if 0 < self._gpus < gpus:
            raise ValueError(f"A task needs {gpus} GPUs, and the cluster has {self._gpus:g}. Lower gpus.")
        return True

    def start(self, task: Any, command: Sequence[str], log: Path, gpus: int, processes: int = 1) -> None:
        """Hand a command to Ray. Without GPUs it is always one process."""
        need = {"num_gpus": gpus} if self._gpus else {"num_cpus": 1}
        self._tasks[
            self._run.options(**need).remote(list(command), log, processes=processes if self._gpus else 1)
        ] = task

    def wait(self) -> tuple[Any, CommandEnd]:
        """Wait until a command ends; return its task and how it ended."""
        (done,), _ = self.ray.wait(list(self._tasks), num_returns=1)
        task = self._tasks.pop(done)
        try:
            return task, self.ray.get(done)
        except self.ray.exceptions.RayError as error:
            return task, CommandEnd(-1, {}, f"{type(error).__name__}: {error}", WORKER_TRIES + 1)

    def __exit__(self, *exception) -> None:
        """Cancel what still runs and leave the cluster; commands save their step and end."""
        for task in self._tasks:
            self.ray.cancel(task, force=True)
        self.ray.shutdown()


def _import_ray():
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ImportError(
            "The package ray is missing, which runs a grid on a cluster. Install it with "
            'pip install "smrabooth[cluster]", or leave --on ray out to run here.'
        ) from error
    return ray
