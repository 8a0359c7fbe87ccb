"""`python -m smra_core evaluate`, on files of the miniature's world and nets of random weights."""

import json

import pytest
from random_clip import write_clip

from smra_core.cli import main
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
