"""Traps of Windows and macOS, set up on any system. Those of one file are tested beside it: names of devices
and files that are held open (storage), letter case and accents (data), consoles (test_cli).
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from device_without_float64 import OnDeviceWithoutFloat64
from PIL import Image

from smra_core.data.subject_set import read_subject_set
from smra_core.evaluation.velocity_change import compute_projection
from smra_core.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "smra_core").rglob("*.py")]
ONLY_POSIX = re.compile(
    r"\b(fcntl|pwd|grp|resource|termios|pty)\b|os\.(fork|getuid|geteuid|setsid|killpg|uname|nice|mkfifo|sysconf)"
    r"|SIGKILL|SIGALRM|SIGHUP|SIGUSR|preexec_fn|\"fork\""
)
OTHER_OPENERS = {"Image", "av", "self"}
"""What else has an `open`, which is not Python's."""


def list_calls(path):
    text = path.read_text("utf-8")
    if not re.search(r"open\(|(read|write)_text\(", text):
        return []  # parsing takes long
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]


def opens_text_in_the_systems_encoding(call):
    """Whether a call opens text and leaves the encoding to the system, which is cp1252 on Windows."""
    called = call.func
    name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
    if any(word.arg == "encoding" for word in call.keywords):
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) < (1 if name == "read_text" else 2)
    if name != "open":
        return False
    owner = getattr(called, "value", None)
    if owner is not None and ast.unparse(owner).split(".")[0] in OTHER_OPENERS:
        return False
    modes = [part.value for part in call.args[owner is None :] if isinstance(part, ast.Constant)]
    return not any("b" in str(mode) for mode in modes)


@pytest.mark.parametrize(
    "line, is_one",
    [
        ("open(p)", True), ("open(p, 'a')", True), ("p.open('w')", True), ("p.read_text()", True),
        ("p.write_text(t)", True), ("open(p, 'rb')", False), ("p.read_text('utf-8')", False),
        ("open(p, encoding='utf-8')", False), ("Image.open(p)", False),
    ],
)  # fmt: skip
def test_the_test_below_knows_text_from_bytes(line, is_one):
    assert opens_text_in_the_systems_encoding(ast.parse(line).body[0].value) is is_one


def test_every_text_file_has_its_encoding_named():
    assert not [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in FILES
        for call in list_calls(path)
        if opens_text_in_the_systems_encoding(call)
    ]


def test_nothing_is_used_that_windows_lacks():
    found = {path.name: ONLY_POSIX.search(path.read_text("utf-8")) for path in FILES}
    assert not [(name, match.group()) for name, match in found.items() if match]


@pytest.mark.parametrize("name", ["Mein Hündchen", "子犬 100%", "dog [1]", "it's a dog", "a.b.c"])
def test_a_folder_of_any_name_is_read_and_trained_in(tmp_path, name):
    home = tmp_path / name / name
    (home / "masks").mkdir(parents=True)
    for place in (home / f"{name}.png", home / "masks" / f"{name}.png"):
        Image.new("L", (64, 64), 255).convert("RGB").save(place)
    (image,), notes, _ = read_subject_set(home, (32, 32), caption="A picture of sks dog")
    assert image.mask_px.min() == 1 and f"{name}.png" in notes[0]
    run = RunFolder(home, name, {"data": name})
    with run.locked():
        run.finish(3)
    assert RunFolder(home, name, {"data": name}).read_finished_steps() == 3


def test_a_projection_needs_no_float64_on_the_device():
    part, whole = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0])
    on_device = [each.as_subclass(OnDeviceWithoutFloat64) for each in (part, whole)]
    with pytest.raises(TypeError, match="float64"):
        on_device[0].double()
    assert compute_projection(*([each] for each in on_device)) == 0.5


def test_a_command_is_interrupted_with_its_parent_where_threads_take_no_signals():
    code = (
        "import signal, time; del signal.pthread_kill\n"
        "from smra_core.grid.child import stop_with_parent\n"
        "try:\n    stop_with_parent()\n    while True: time.sleep(0.02)\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment,
        timeout=60,
    )
    assert done.stdout.split() == [b"interrupted"], done.stderr
