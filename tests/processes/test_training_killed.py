"""A training whose process is killed: no saved step is lost, and it goes on bit for bit."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
PLACES = ROOT, ROOT / "tests/core", ROOT / "tests/core/training"
"""Where the killed process imports from."""

KILLED = textwrap.dedent(
    """
    import os, signal, sys
    sys.path[:0] = sys.argv[1:4]
    import test_trainer
    from toy_models import ToyDenoiser

    def kill(info):
        if sys.argv[5] == "kill" and info.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    run = test_trainer.Run(ToyDenoiser(), sys.argv[4])
    with run.folder.locked():
        state = run.start(kill)
    from safetensors.torch import save_file
    save_file(state.copy_tensors(), sys.argv[6])
    """
)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no kill -9")
def test_a_killed_process_loses_no_saved_step_and_goes_on_bit_for_bit(tmp_path):
    def start(folder, how, result):
        places = [*map(str, PLACES), str(tmp_path / folder), how, str(tmp_path / result)]
        return subprocess.Popen([sys.executable, "-c", KILLED, *places], stderr=subprocess.PIPE, text=True)

    def end(process):
        _, said = process.communicate(timeout=120)
        return process.returncode, said

    whole, killed = start("whole", "whole", "whole.safetensors"), start("killed", "kill", "none")
    assert end(killed)[0] == -9
    for process in (whole, start("killed", "resume", "resumed.safetensors")):
        code, said = end(process)
        assert code == 0, said
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
