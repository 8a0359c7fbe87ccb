"""Metrics of a grid's cells: each video once for the same networks and references, and anew for others."""

import pytest
import torch

from smra_core.data.video import write_video
from smra_core.evaluation import cell_metrics
from smra_core.evaluation.cell_metrics import CellMeter, CellMetrics, Networks, describe_left_out
from smra_core.evaluation.evaluate import Evaluation, References


@pytest.fixture
def measured(monkeypatch):
    """Prompts of the measurements that were made, each of which stands in for a metric."""
    prompts = []

    def measure(frames, references, models):
        prompts.append(references.prompt)
        return Evaluation({"CLIP-T": len(prompts)}, {}, [])

    monkeypatch.setattr(cell_metrics, "evaluate_video", measure)
    return prompts


def test_a_video_is_measured_anew_for_other_references_and_networks_alone(tmp_path, measured):
    video = tmp_path / "cell.mp4"
    write_video(video, torch.rand(2, 3, 16, 16), 8)

    def measure(networks, references):
        meter = CellMeter(Networks(networks, lambda: None))
        return meter.measure(video, references, lambda frames: References(references)).values["CLIP-T"]

    assert [measure("dino", "a dog"), measure("dino", "a dog"), measure("dino", "a cat")] == [1, 1, 2]
    assert measure("clip", "a dog") == 3 and measured == ["a dog", "a cat", "a dog"]


def test_a_metric_is_named_as_left_out_if_no_cell_has_it():
    cells = [
        CellMetrics({"A": 1.0}, {"B": "needs b", "C": "needs b"}),
        CellMetrics({"C": 1.0}, {"A": "needs a"}),
    ]
    assert describe_left_out(cells) == ["Left out: B (needs b)."]
