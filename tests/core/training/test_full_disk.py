"""Every write of a run fails once, and then a full disk stays full: nothing that was trained is lost."""

import builtins
import errno
import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from toy_models import ToyDenoiser

from smra_core.storage import tensor_cache, weight_file
from smra_core.storage.tensor_cache import TensorCache
from smra_core.training import run_folder
from smra_core.training.job import TrainingJob, run_job
from smra_core.training.ranks import ALONE
from smra_core.training.run_folder import PREVIOUS, STATE
from smra_core.training.sura import SubjectObjective, SubjectSample, SubjectSettings
from smra_core.training.train_settings import TrainSettings

GRID, DIM, TEXT, FEATURES, STEPS = 4, 8, 6, 5, 3
SETTINGS = SubjectSettings(projector_width=7, rank=2)
FULL = "No space left on device (os error 28)"


class Disk:
    """A disk whose write number `fails_at` fails, and all after it if it `stays_full`."""

    def __init__(self, monkeypatch, fails_at, stays_full):
        self.written, self.fails_at, self.stays_full = 0, fails_at, stays_full
        for module in (run_folder, weight_file):
            monkeypatch.setattr(module, "save_file", self._failing(module.save_file, SafetensorError(FULL)))
        for name in ("fsync", "replace", "link"):
            error = OSError(errno.ENOSPC, "No space left on device")
            monkeypatch.setattr(os, name, self._failing(getattr(os, name), error))
        monkeypatch.setattr(run_folder, "open", self._open, raising=False)

    def _count(self, error):
        self.written += 1
        if self.written == self.fails_at or (self.stays_full and self.written > self.fails_at):
            raise error

    def _failing(self, write, error):
        def write_or_fail(*args, **kwargs):
            self._count(error)
            return write(*args, **kwargs)

        return write_or_fail

    def _open(self, path, mode="r", **kwargs):
        file = builtins.open(path, mode, **kwargs)
        if "a" not in mode:
            return file
        write = file.raw.write
        disk = self

        class Half:
            """A file of which half of the first piece is written before the disk is full."""

            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def __getattr__(self, name):
                return getattr(file, name)

            def write(self, content):
                try:
                    disk._count(OSError(errno.ENOSPC, "No space left on device"))
                except OSError:
                    write(content[: len(content) // 2])
                    raise
                return file.write(content)

        return Half()


def samples():
    generator = torch.Generator().manual_seed(0)
    shapes = (16, 1, GRID, GRID), (3, TEXT), (GRID * GRID // 4, FEATURES)
    latents, context, features = (torch.randn(shape, generator=generator) for shape in shapes)
    return [SubjectSample("toy", latents, context, torch.ones(1, 1, GRID, GRID), features)]


def backend(folder):
    denoiser = ToyDenoiser()
    return SimpleNamespace(
        runs=folder, spec=denoiser.spec, device=torch.device("cpu"), base_fingerprint={"base": "toy"},
        denoiser_for_training=lambda step_bytes: nullcontext(denoiser), dtype=torch.float32,
        cache=SimpleNamespace(hits=0, misses=0), ranks=ALONE,
    )  # fmt: skip


def train(folder):
    settings = TrainSettings(steps=STEPS, accumulate=1, learning_rate=1e-2, save_every=2)
    job = TrainingJob(
        "subject", "toy", SETTINGS, settings, samples(), ["a toy"],
        load_objective=lambda: SubjectObjective(SETTINGS, DIM, FEATURES),
    )  # fmt: skip
    return run_job(backend(folder), job)


def read_result(trained):
    tensors = {name: tensor.tolist() for name, tensor in load_file(trained.path).items()}
    return tensors, trained.losses.read_text()


def read_step(run):
    """The step of the newest state that can be read, 0 if there is none."""
    for name in (STATE, PREVIOUS):
        if (run / name).is_file():
            return int(load_file(run / name)["step"])  # a state that cannot be read is an error here
    return 0


@pytest.mark.parametrize("stays_full", [False, True])
def test_any_write_of_a_run_may_fail(tmp_path, stays_full):
    whole = read_result(train(tmp_path / "whole"))
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, number, stays_full)
            try:
                train(folder)
            except OSError as error:
                assert "no space is left on its disk" in str(error) and str(folder) in str(error)
            else:
                if disk.written < number:
                    break
        for run in folder.iterdir():
            assert not list(run.glob(".*.tmp*"))
            read_step(run)
        assert read_result(train(folder)) == whole, f"write {number} of the run"
    assert number > 15


@pytest.mark.parametrize("broken", [(STATE,), (STATE, PREVIOUS)])
def test_a_broken_state_never_takes_the_place_of_a_good_one(tmp_path, broken):
    whole = read_result(train(tmp_path / "whole"))
    (run,) = (tmp_path / "whole").iterdir()
    (run / "finished").unlink()
    for name in broken:
        (run / name).write_bytes(b"garbage")
    if PREVIOUS in broken:
        with pytest.raises(ValueError, match=r"cannot be read: state.safetensors .*state.previous.*step 1"):
            train(tmp_path / "whole")
        return
    kept = (run / PREVIOUS).read_bytes()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="no space is left"):
        Disk(patch, 3, True)
        train(tmp_path / "whole")
    assert (run / PREVIOUS).read_bytes() == kept
    assert read_result(train(tmp_path / "whole")) == whole


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise SafetensorError(FULL)

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    made = TensorCache(tmp_path).get_or_compute("latents", ["key"], lambda: {"latents": torch.ones(2)})
    assert made["latents"].tolist() == [1, 1] and list(tmp_path.iterdir()) == []
    assert "(latents) is not kept" in caplog.text and "no space is left" in caplog.text
    assert tensor_cache.log.name == "smrabooth"
