"""CoTracker's points by the interface of the authors' package, of which a stand-in follows a known motion."""

import sys
import types

import pytest
import torch
from torch import nn

from smra_core.encoders.co_tracker import CoTracker
from smra_core.encoders.sea_raft import load_sea_raft
from smra_core.evaluation.evaluate import EVALUATION_HELP, EvaluationModels, References, evaluate_video
from smra_core.miniature.weight_paths import SEA_RAFT_FILE
from smra_core.storage.weight_file import write_weight_file

FRAMES, SIDE = 4, 16


class Predictor(nn.Module):
    """Interface of cotracker.predictor.CoTrackerPredictor; its points move by the weight, each frame."""

    def __init__(self, checkpoint="./checkpoints/scaled_offline.pth", offline=True, v2=False, window_len=60):
        super().__init__()
        assert checkpoint is None and offline and window_len == 60
        self.model = nn.Linear(1, 2, bias=False)

    def forward(self, video, queries=None, segm_mask=None, grid_size=0, grid_query_frame=0):
        assert video.shape[:3] == (1, FRAMES, 3) and video.max() > 1  # 0 to 255
        assert queries.shape[2] == 3 and not queries[..., 0].any()  # (frame, x, y)
        times = torch.arange(video.shape[1])[:, None, None]
        tracks = queries[:, None, :, 1:] + times * self.model.weight[:, 0]
        return tracks, torch.ones(tracks.shape[:3], dtype=torch.bool)


@pytest.fixture
def load(monkeypatch, tmp_path):
    package, module = types.ModuleType("cotracker"), types.ModuleType("cotracker.predictor")
    package.__path__, module.CoTrackerPredictor = [], Predictor
    monkeypatch.setitem(sys.modules, "cotracker", package)
    monkeypatch.setitem(sys.modules, "cotracker.predictor", module)

    def write_and_load(weight=((1.0,), (0.0,)), name="weight"):
        write_weight_file(tmp_path / "points.safetensors", {name: torch.tensor(weight)}, {})
        return CoTracker(tmp_path / "points.safetensors")

    return write_and_load


def test_points_are_followed_from_the_first_frame(load):
    positions, visible = load().follow(
        torch.ones(FRAMES, 3, SIDE, SIDE), torch.tensor([[2.0, 3.0], [5.0, 6.0]])
    )
    assert positions[:, :, 0].tolist() == [[2, 3, 4, 5], [5, 6, 7, 8]]
    assert positions[:, :, 1].tolist() == [[3] * FRAMES, [6] * FRAMES] and visible.all()


def test_another_models_weights_are_refused(load):
    with pytest.raises(ValueError, match="other"):
        load(name="other")


def test_motion_fidelity_bears_the_papers_name_where_cotracker_followed_the_points(load):
    video, models = torch.rand(FRAMES, 3, SIDE, SIDE), EvaluationModels(co_tracker=load())
    result = evaluate_video(video, References(motion=video), models)
    assert result.values["Motion Fidelity"] == pytest.approx(100)
    assert result.values["Motion Fidelity x"] == pytest.approx(100) and "Motion Fidelity y" in result.values
    assert result.left_out["Motion Amount"] == "needs SEA-RAFT"
    assert "motion fidelity is measured with the points of CoTracker3" in result.notes
    assert set(result.values) | set(result.left_out) <= set(EVALUATION_HELP)
    alone = evaluate_video(video, References(), models)
    assert alone.left_out["Motion Fidelity"] == "needs the clip of the motion"


def test_with_sea_raft_the_amount_of_motion_is_its_flows(load):
    video = torch.rand(FRAMES, 3, 64, 64)
    models = EvaluationModels(co_tracker=load(), sea_raft=load_sea_raft(SEA_RAFT_FILE))
    result = evaluate_video(video, References(motion=video), models)
    assert result.values["Motion Amount"] == pytest.approx(1) and result.values["Motion Fidelity"] > 99
    assert not any("(flow)" in name for name in result.values)


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cotracker", None)
    monkeypatch.setitem(sys.modules, "cotracker.predictor", None)
    with pytest.raises(ImportError, match="pip install git.*Without --co-tracker"):
        CoTracker(tmp_path / "points.pth")
