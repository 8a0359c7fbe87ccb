"""Where ComfyUI is, with which interpreter it runs, and a server of it for the duration of the tests."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import random_wan
from safetensors.torch import save_file

PACK = Path(__file__).parents[2]
NAME = "ComfyUI-SMRABooth"
PARTS = ("locales", "nodes", "smra_core", "workflows")
REQUIREMENTS = PACK / "requirements.txt"
START_SECONDS, RUN_SECONDS = 600, 600


@dataclass(frozen=True)
class Host:
    root: Path
    python: Path

    def environment(self) -> dict[str, str]:
        """PYTHONPATH would put the pack's folders before the host's modules of the same names."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return kept | {"COMFYUI_PATH": str(self.root), "OMP_NUM_THREADS": "1"}


def find_host() -> Host | None:
    """$COMFYUI_PATH, else ~/comfy/ComfyUI, else the ComfyUI in whose custom_nodes the pack lies."""
    given = os.environ.get("COMFYUI_PATH")
    places = [Path(given)] if given else [Path.home() / "comfy" / "ComfyUI", PACK.parents[1]]
    root = next((place for place in places if (place / "main.py").is_file()), None)
    return root and Host(root, _python(root))


def _python(root: Path) -> Path:
    """$COMFYUI_PYTHON, else the environment beside the host (also the portable edition's), else ours."""
    given = os.environ.get("COMFYUI_PYTHON")
    folders = (root / ".venv", root / "venv", root.parent / ".venv", root.parent / "python_embeded")
    inside = [
        folder / end for folder in folders for end in ("bin/python", "Scripts/python.exe", "python.exe")
    ]
    found = next((python for python in inside if python.is_file()), Path(sys.executable))
    return Path(given) if given else found


def find_missing_requirements(host: Host) -> str:
    """Return a sentence with the command that installs what the host lacks; empty if it lacks nothing."""
    lines = [line.strip() for line in REQUIREMENTS.read_text("utf-8").splitlines()]
    names = [re.split(r"[^\w.-]", line)[0].replace("-", "_") for line in lines if line and line[0] != "#"]
    script = f"from importlib.util import find_spec; print(*[n for n in {names} if find_spec(n) is None])"
    done = subprocess.run([host.python, "-c", script], cwd=host.root, capture_output=True, text=True)
    if done.returncode == 0 and not done.stdout.strip():
        return ""
    missing = ", ".join(done.stdout.split()) or done.stderr.strip().splitlines()[-1]
    return f"ComfyUI's Python lacks {missing}. Install: {host.python} -m pip install -r {REQUIREMENTS}"


@dataclass(frozen=True)
class Server:
    url: str
    base: Path
    """Its input, output and models folders."""
    process: subprocess.Popen

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait(30)

    def get(self, path: str, parse: bool = True):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if parse else content

    def queue(self, prompt: dict) -> str:
        body = json.dumps({"prompt": prompt, "client_id": "tests"}).encode()
        request = urllib.request.Request(f"{self.url}/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read())["prompt_id"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def run(self, prompt: dict) -> dict:
        """Queue a prompt and wait for its entry in the history."""
        prompt_id = self.queue(prompt)
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history and history[prompt_id]["status"]["completed"] in (True, False):
                return history[prompt_id]
            time.sleep(0.2)
        raise AssertionError(f"The prompt did not finish in {RUN_SECONDS} s.")


def install(target: Path) -> None:
    """Copy the pack as a download from the registry has it, without what .comfyignore leaves out; random
    weights stand in for a miniature that is not there.
    """
    target.mkdir(parents=True)
    shutil.copy(PACK / "__init__.py", target)
    for part in PARTS:
        shutil.copytree(PACK / part, target / part, ignore=_list_left_out)
    weights = target / "smra_core" / "miniature" / "weights" / "wan_miniature_t2v.safetensors"
    if not weights.exists():
        save_file(random_wan.dit_state(blocks=4, ffn=1024), weights)


def _list_left_out(folder: str, names: list[str]) -> set[str]:
    """Return those names in a folder of the repository that a download does not have."""
    lines = (PACK / ".comfyignore").read_text("utf-8").splitlines()
    left_out = {PACK / line for line in lines if line and not line.startswith("#")}
    return {name for name in names if name == "__pycache__" or Path(folder) / name in left_out}


@contextmanager
def served(host: Host, base: Path) -> Iterator[Server]:
    """The host with this pack and nothing else, on a free port, its data in `base`, where another may have
    been before.
    """
    if not (base / "custom_nodes" / NAME).exists():
        install(base / "custom_nodes" / NAME)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        host.python,
        "main.py",
        "--cpu",
        "--disable-auto-launch",
        "--port",
        port,
        "--base-directory",
        base,
    ]
    with open(base / "server.log", "w") as log:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=host.root,
            env=host.environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            server = Server(f"http://127.0.0.1:{port}", base, process)
            _wait_for(server, process)
            yield server
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(server: Server, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.get("/system_stats")
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"ComfyUI did not start:\n{(server.base / 'server.log').read_text()[-4000:]}")
