"""Run a grid's commands on a Ray cluster, with results in the grid's folder.

Where a node does not see that folder, LoRAs go there and results come back as Ray's objects.
"""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..storage.atomic_write import write_atomically
from .command_run import CommandEnd, run_command
from .grid_file import LORA_ENDING

WORKER_TRIES = 3
"""Times that Ray starts a command again whose worker or node has died."""
_RESULTS = ("path", "losses")
"""Keys of files in what a command prints with --json."""


class TaskEnd(NamedTuple):
    """How a command on a node ended."""

    end: CommandEnd
    files: Mapping[str, bytes]
    """Contents of what it made, by path, where the node does not share the grid's folder."""


def run_on_node(
    command: Sequence[str], log: Path, processes: int, mark: Path, given: Mapping[str, Any]
) -> TaskEnd:
    """Run a command on a node of the cluster; its files come back unless the node sees `mark`.

    `given` holds the contents of LoRA files that the command reads, as objects of Ray.
    """
    if mark.is_file():
        return TaskEnd(run_command(command, log, processes=processes), {})
    for path, content in given.items():
        write_file(Path(path), _get(content))
    end = run_command(command, log, processes=processes)
    made = [Path(end.result[name]) for name in _RESULTS if end.result.get(name)]
    return TaskEnd(end, {str(path): path.read_bytes() for path in [*made, log] if path.is_file()})


def write_file(path: Path, content: bytes) -> None:
    """Write a file that came as an object, unless it is there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as draft:
            draft.write_bytes(content)


def _get(content: Any) -> bytes:
    return content if isinstance(content, bytes) else _import_ray().get(content)


class RayCluster:
    """Runs commands as Ray tasks, each with the GPUs that it needs; Ray queues and places them."""

    def __init__(self, address: str | None, folder: Path):
        """Connect to the cluster at `address` (`auto` for the one that runs here); None starts one.

        `folder` is the grid's. On a cluster without GPUs a command takes one CPU. Raises ImportError when Ray
        is missing.
        """
        self.ray = _import_ray()
        # Workers are processes of Ray; what they print goes to the logs of the grid.
        self.ray.init(address=address, log_to_driver=False, ignore_reinit_error=False)
        self._gpus = self.ray.cluster_resources().get("GPU", 0)
        self._run = self.ray.remote(max_retries=WORKER_TRIES)(run_on_node)
        self._tasks: dict[Any, Any] = {}
        """Running tasks, and which of the grid's tasks they are."""
        self._sent: dict[str, Any] = {}
        """LoRA files as objects, by path, each stored once."""
        self._mark = folder / f".seen_by_ray_{uuid.uuid4().hex}"
        folder.mkdir(parents=True, exist_ok=True)
        self._mark.touch()

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
        count = processes if self._gpus else 1
        running = self._run.options(**need).remote(
            list(command), log, count, self._mark, self._send_loras(command)
        )
        self._tasks[running] = task

    def wait(self) -> tuple[Any, CommandEnd]:
        """Wait until a command ends, and write what came back; return its task and how it ended."""
        (done,), _ = self.ray.wait(list(self._tasks), num_returns=1)
        task = self._tasks.pop(done)
        try:
            end, files = self.ray.get(done)
        except self.ray.exceptions.RayError as error:
            return task, CommandEnd(-1, {}, f"{type(error).__name__}: {error}", WORKER_TRIES + 1)
        for path, content in files.items():
            write_file(Path(path), content)
        return task, end

    def __exit__(self, *exception) -> None:
        """Cancel what still runs and leave the cluster; commands save their step and end."""
        for task in self._tasks:
            self.ray.cancel(task, force=True)
        self.ray.shutdown()
        self._mark.unlink(missing_ok=True)

    def _send_loras(self, command: Sequence[str]) -> dict[str, Any]:
        """Return the LoRA files that a command reads, as objects of Ray by their path."""
        files = [part for part in command if part.endswith(LORA_ENDING) and Path(part).is_file()]
        for path in files:
            if path not in self._sent:
                self._sent[path] = self.ray.put(Path(path).read_bytes())
        return {path: self._sent[path] for path in files}


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
