"""`python -m smra_core evaluate`, on files of the miniature's world and nets of random weights."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from random_clip import write_clip

from smra_core.cli import build_parser, main
from smra_core.commands import evaluate
from smra_core.data.video import write_video
from smra_core.evaluation.evaluate import Evaluation, EvaluationModels
from smra_core.miniature.held_out_files import write_motion, write_subject
from smra_core.miniature.weight_paths import DINOV2_FILE, SEA_RAFT_FILE


def test_evaluate_measures_a_video_against_a_prompt_pictures_and_a_clip(tmp_path, capsys):
    clip = write_motion(tmp_path / "motion") / "00.mp4"
    subject, folder = write_subject(tmp_path / "subject"), write_clip(tmp_path / "clip")
    given = ["--prompt", "a dog", "--subject", str(subject), "--motion", str(clip), "--clip", str(folder)]
    nets = ["--dino", str(DINOV2_FILE), "--sea-raft", str(SEA_RAFT_FILE), "--frames", "5", "--device", "cpu"]
    assert main(["evaluate", str(clip), *given, *nets, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)[str(clip)]
    assert result["metrics"]["Motion Fidelity (flow)"] == pytest.approx(100, abs=0.1)
    assert result["metrics"]["Motion Amount"] == pytest.approx(1)
    assert {"CLIP-T", "CLIP-I", "DINO-I (DINOv2)", "Temporal Consistency"} <= set(result["metrics"])
    assert set(result["left_out"]) == {"PickScore", "Aesthetic", "Imaging"}


def test_without_any_network_evaluate_says_what_to_give(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "video.mp4")]) == 1
    assert "at least one of --clip" in capsys.readouterr().err


def test_imaging_quality_without_pyiqa_says_how_to_install_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyiqa", None)
    assert main(["evaluate", "video.mp4", "--musiq", str(tmp_path / "musiq.pth"), "--device", "cpu"]) == 1
    assert "smrabooth[metrics]" in capsys.readouterr().err


FRAMES, SIDE = 9, 32


def write_steps(path, fps, side=SIDE):
    """Write a clip whose frames are gray, each brighter than the one before, from 0 to 0.8."""
    write_video(path, torch.arange(FRAMES).view(-1, 1, 1, 1).expand(-1, 3, side, side) / 10, fps)
    return str(path)


@pytest.fixture
def measured(monkeypatch):
    """List of (video, references, models) that are measured; the metric is the length of the video."""
    calls = []

    def evaluate_video(video, references, models):
        calls.append((video, references, models))
        return Evaluation({"CLIP-T": len(video)}, {}, [])

    monkeypatch.setattr(evaluate, "evaluate_video", evaluate_video)
    monkeypatch.setattr(evaluate, "load_models", lambda args: None)
    return calls


def test_every_video_is_measured_up_to_the_frames_that_are_asked_for(tmp_path, measured, capsys):
    videos = [write_steps(tmp_path / f"{name}.mp4", 8) for name in "ab"]
    assert main(["evaluate", *videos, "--frames", "5"]) == 0
    assert [len(video) for video, _, _ in measured] == [5, 5]
    assert capsys.readouterr().out.split()[-5:] == ["mean", "CLIP-T", *["5.0000"] * 3]


def test_the_clip_of_the_motion_is_read_at_the_videos_size_rate_and_length(tmp_path, measured, caplog):
    video, clip = write_steps(tmp_path / "a.mp4", 8), write_steps(tmp_path / "clip.mp4", 16, 2 * SIDE)
    with caplog.at_level("INFO"):
        assert main(["evaluate", video, "--motion", clip, "--frames", "5"]) == 0
    motion = measured[0][1].motion
    assert motion.shape == (5, 3, SIDE, SIDE)
    assert motion.mean((1, 2, 3)).tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8], abs=0.03)
    assert "note: a.mp4: " in caplog.text


def test_pictures_of_the_subject_keep_their_shape(tmp_path, measured, caplog):
    video = write_steps(tmp_path / "a.mp4", 8)
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (96, 32)).save(tmp_path / "dog" / "wide.png")
    with caplog.at_level("INFO"):
        assert main(["evaluate", video, "--subject", str(tmp_path / "dog")]) == 0
    (picture,) = measured[0][1].subject
    assert picture.shape[-1] == 3 * picture.shape[-2]
    assert "note: wide.png" in caplog.text


def test_no_frames_are_refused_before_a_network_is_loaded(measured, capsys):
    assert main(["evaluate", "nowhere.mp4", "--frames", "0"]) == 1
    assert "--frames must be at least 1, got 0" in capsys.readouterr().err


def test_each_network_is_loaded_from_its_own_file(monkeypatch):
    names = ("Clip", "load_picture_encoder", "Musiq", "CoTracker")
    for name in names:
        monkeypatch.setattr(evaluate, name, lambda *given, name=name: (name, *given))
    sea_raft = SimpleNamespace(to=lambda device: ("sea_raft", device))
    monkeypatch.setattr(evaluate, "load_sea_raft", lambda file: sea_raft)
    monkeypatch.setattr(evaluate, "load_aesthetic_layer", lambda file: ("aesthetic", file))
    options = ("clip", "dino", "sea-raft", "co-tracker", "pick-score", "aesthetic", "musiq")
    given = [f"--{option}={option}.pth" for option in options]
    args = build_parser().parse_args(["evaluate", "a.mp4", "--device", "cpu", *given])
    device, files = torch.device("cpu"), {option: Path(f"{option}.pth") for option in options}
    assert evaluate.load_models(args) == EvaluationModels(
        clip=("Clip", files["clip"], device),
        dino=("load_picture_encoder", files["dino"], device),
        sea_raft=("sea_raft", device),
        pick_score=("Clip", files["pick-score"], device),
        aesthetic=("aesthetic", files["aesthetic"]),
        musiq=("Musiq", files["musiq"], device),
        co_tracker=("CoTracker", files["co-tracker"], device),
    )
