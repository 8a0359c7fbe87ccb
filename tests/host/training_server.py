"""A running ComfyUI with the pack in it, its files in a folder of the test's own."""

import json
import os
import socket
import subprocess
import time
import uuid
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from event_socket import EventSocket

PACK = Path(__file__).parents[2]
STUB = '''
"""Inputs that a test needs and no node makes: pictures of a square, its masks, a prompt."""
import torch
from comfy_api.latest import io


class TestData(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestData", category="test",
            inputs=[io.Int.Input("frames"), io.Int.Input("shift", default=0)],
            outputs=[io.Image.Output(), io.Mask.Output(), io.Conditioning.Output(), io.Latent.Output()],
        )

    @classmethod
    def execute(cls, frames, shift):
        generator = torch.Generator().manual_seed(shift)
        background = torch.rand(64, 64, 3, generator=generator)
        images, masks = background.repeat(frames, 1, 1, 1), torch.zeros(frames, 64, 64)
        for i in range(frames):
            images[i, 20:40, 10 + 2 * i : 30 + 2 * i] = torch.tensor([1.0, 0.2, 0.1])
            masks[i, 20:40, 10 + 2 * i : 30 + 2 * i] = 1
        prompt = torch.randn(1, 7, 4096, generator=generator)
        return io.NodeOutput(images, masks, [[prompt, {}]], {"samples": torch.zeros(1, 16, 1, 8, 8)})


NODE_CLASS_MAPPINGS = {"TestData": TestData}
'''


class Server:
    """Starts the host's own interpreter on a free port; prompts are queued over HTTP."""

    def __init__(self, host: Path, python: str, base: Path):
        self.base, self.client = base, uuid.uuid4().hex
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for folder in ("custom_nodes", "input", "output", "temp", "user", "models"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        if not (base / "custom_nodes" / "smrabooth").exists():
            (base / "custom_nodes" / "smrabooth").symlink_to(PACK)
            (base / "custom_nodes" / "test_data.py").write_text(STUB)
        self.log = base / "server.log"
        self._start(host, python)

    def _start(self, host: Path, python: str) -> None:
        command = [python, "main.py", "--cpu", "--disable-auto-launch", "--disable-metadata"]
        command += ["--port", str(self.port), "--base-directory", str(self.base)]
        command += ["--preview-method", "latent2rgb", "--database-url", "sqlite:///:memory:"]
        environment = os.environ | {"PYTHONPATH": "", "DO_NOT_TRACK": "1"}
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(command, cwd=host, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                self.get("/system_stats")
                return
            except (URLError, OSError):
                if self.process.poll() is not None:
                    break
                time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def get(self, path: str):
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, content: dict):
        request = Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"{}")
        except HTTPError as error:
            raise RuntimeError(f"{path}: {error.read().decode()[:2000]}") from error

    def events(self) -> EventSocket:
        return EventSocket(self.port, self.client)

    def queue(self, prompt: dict) -> str:
        return self.post("/prompt", {"prompt": prompt, "client_id": self.client})["prompt_id"]

    def run(self, prompt: dict, timeout: float = 240) -> dict:
        """The finished prompt's entry in the host's history."""
        identifier = self.queue(prompt)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{identifier}").get(identifier)
            if entry is not None:
                return entry
            time.sleep(0.2)
        raise RuntimeError(f"The prompt did not finish:\n{self.log.read_text()[-3000:]}")

    def executed(self, entry: dict) -> set[str]:
        """Nodes that ran, rather than being taken from the host's cache."""
        cached = [m[1]["nodes"] for m in entry["status"]["messages"] if m[0] == "execution_cached"]
        return set(entry["prompt"][2]) - {node for nodes in cached for node in nodes}
