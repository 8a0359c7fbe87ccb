"""What both commands that train hand on: options to the data and the training, and its end to the user."""

import inspect
import json
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest

from smra_core.cli import build_parser
from smra_core.commands import train_motion, train_subject, training_run
from smra_core.data.subject_set import SubjectSet
from smra_core.training.job import TrainedLora
from smra_core.training.ranks import ALONE, Ranks

TRAINED = TrainedLora(Path("dog.safetensors"), Path("losses.csv"), 7, ("a note",), "dog")
SECOND = Ranks(rank=1, count=2)


@pytest.fixture
def replace(monkeypatch):
    """Function that lets another one do nothing but return a value; it returns the arguments by name."""

    def replace_function(module, name, value):
        signature, given = inspect.signature(getattr(module, name)), {}

        def note(*args, **kwargs):
            given.update(signature.bind(*args, **kwargs).arguments)
            return value

        monkeypatch.setattr(module, name, note)
        return given

    return replace_function


def parse(*arguments):
    return build_parser().parse_args([str(argument) for argument in arguments])


def test_a_training_prints_its_lora_and_for_scripts_also_losses_steps_and_notes(capsys):
    training_run.run_training(Namespace(json=False), lambda args, ranks: TRAINED)
    assert capsys.readouterr().out == "dog.safetensors\n"
    training_run.run_training(Namespace(json=True), lambda args, ranks: TRAINED)
    assert json.loads(capsys.readouterr().out) == {
        "path": str(Path("dog.safetensors").resolve()), "losses": str(Path("losses.csv").resolve()),
        "steps": 7, "notes": ["a note"],
    }  # fmt: skip


def test_of_several_processes_the_first_alone_prints(monkeypatch, capsys):
    monkeypatch.setattr(training_run, "join_ranks", lambda: nullcontext(SECOND))
    training_run.run_training(Namespace(json=False), lambda args, ranks: TRAINED)
    assert capsys.readouterr().out == ""


def test_the_options_of_a_motion_choose_its_frames_its_decoder_and_its_name(replace, tmp_path):
    decoder = tmp_path / "tiny.pth"
    decoder.touch()
    read = replace(train_motion, "read_motion_set", (["clips"], []))
    trained = replace(train_motion, "train_motion", TRAINED)
    options = ["--start", 3, "--stride", 2, "--frame-rate", 8, "--tiny-decoder", decoder, "--name", "walk"]
    args = parse("train-motion", tmp_path, *options, "--out", tmp_path / "out")
    assert train_motion.train(args, ALONE) == TRAINED
    assert read["selection"][:4] == (17, 3, 2, 8.0)
    assert (trained["clips"], trained["tiny_decoder"], trained["name"]) == (["clips"], decoder, "walk")


def test_the_options_of_a_subject_choose_its_frames_its_shapes_and_its_masks(replace, tmp_path):
    sam = tmp_path / "sam.pth"
    sam.touch()
    read = replace(train_subject, "read_subject_set", SubjectSet([], [], ["clip"]))
    masked = replace(train_subject, "find_missing_masks", ["picture"])
    replace(train_subject, "describe_new_masks", [])
    trained = replace(train_subject, "train_subject", TRAINED)
    options = ["--clip-frames", 13, "--own-sizes", "--sam", sam, "--caption", "a dog"]
    args = parse("train-subject", tmp_path / "dog", *options, "--out", tmp_path / "out")
    assert train_subject.train(args, ALONE) == TRAINED
    assert (read["clips"].frames, read["own_multiple"], read["caption"]) == (13, 16, "a dog")
    assert masked["sam"] == sam
    assert (trained["images"], trained["name"]) == (["picture", "clip"], "dog")


@pytest.mark.parametrize("command", [train_motion, train_subject])
def test_more_processes_than_batches_are_refused_before_the_data_is_read(command, tmp_path):
    name = command.__name__.rpartition(".")[2].replace("_", "-")
    args = parse(name, tmp_path / "nowhere", "--accumulate", 1, "--out", tmp_path / "out")
    with pytest.raises(ValueError, match="accumulate is 1, and 2 processes"):
        command.train(args, SECOND)


def test_of_several_processes_the_first_alone_has_a_bar(replace, tmp_path):
    replace(train_motion, "read_motion_set", ([], []))
    replace(train_motion, "train_motion", TRAINED)
    bar = replace(train_motion, "TrainingBar", nullcontext())
    train_motion.train(parse("train-motion", tmp_path, "--out", tmp_path / "out"), SECOND)
    assert bar["shown"] is False
