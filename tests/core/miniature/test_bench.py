import json

import pytest
import torch

from smra_core.evaluation.metrics import METRIC_HELP as SCORES
from smra_core.lora.schedule import SUBJECT_STRENGTHS, TPoint
from smra_core.miniature.bench import paper_metrics, run
from smra_core.miniature.bench.metrics import METRIC_HELP
from smra_core.miniature.bench.planted import describe_ranking, run_planted
from smra_core.miniature.bench.run import BenchSize, Case, list_cases, open_bench, read_finished
from smra_core.miniature.bench.table import estimate_mean, render_differences, render_table
from smra_core.miniature.bench.variants import VARIANTS, at_step


def clip(variant, seed=0, value=0.5, subject="ball"):
    metrics = dict.fromkeys(METRIC_HELP, value)
    return {"variant": variant, "subject": subject, "motion": "zigzag", "seed": seed, "clip": 0, **metrics}


def test_cases_come_seed_by_seed():
    listed = list(list_cases(BenchSize(("a", "b"), ("m",), seeds=2)))
    assert listed == [Case("a", "m", 0), Case("b", "m", 0), Case("a", "m", 1), Case("b", "m", 1)]


def test_the_full_bench_has_64_clips_a_variant_and_three_seeds():
    size = BenchSize()
    assert size.seeds >= 3 and len(list(list_cases(size))) * size.clips >= 64


def test_measured_cases_are_not_measured_again(tmp_path):
    path = tmp_path / "clips.jsonl"
    assert read_finished(path) == set()
    path.write_text(json.dumps(clip("plain LoRAs", seed=2)) + "\n")
    assert read_finished(path) == {("plain LoRAs", Case("ball", "zigzag", 2))}


def test_intervals_are_over_trainings_not_over_clips():
    same = [clip("a", 0, 0.0)] * 50 + [clip("a", 1, 1.0)] * 50
    interval = estimate_mean(same, "x")
    assert interval.mean == pytest.approx(0.5)
    assert (interval.low, interval.high) == (0, 1)  # two trainings: nothing is known yet


def test_the_table_has_a_row_for_each_variant_and_explains_its_columns():
    text = render_table([clip("SMRABooth (T_point 15)"), clip("without MoRA")])
    assert text.count("\n| ") == 2 and "0.50 (0.50..0.50)" in text
    assert all(f"- `{name}`" in text for name in METRIC_HELP)


def test_variants_are_compared_case_by_case_where_both_are_measured():
    ours, other = "SMRABooth (T_point 15)", "without MoRA"
    clips = [clip(ours, seed, seed / 10) for seed in range(3)]
    clips += [clip(other, seed, seed / 10 + 0.2) for seed in range(2)]
    row = render_differences(clips).splitlines()[-1]
    assert row.startswith(f"| {other} | 2 | 0.20 (0.20..0.20) |")  # however far the cases are apart
    assert render_differences(clips[:3]).startswith("No differences")


def test_the_variants_are_the_papers_and_change_one_thing_each():
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    ours = next(variant for variant in VARIANTS if variant.name.startswith("SMRABooth"))
    assert ours.strengths == SUBJECT_STRENGTHS and ours.t_point == TPoint()
    assert at_step(15).sigma == pytest.approx(TPoint().sigma)
    assert [at_step(step).sigma for step in (0, 30, 50)] == pytest.approx([1, 0.4, 0])


def test_the_summary_of_planted_loras_counts_the_pairs_that_rank_as_planted(tmp_path):
    better = {"clean": 0.1, "leaky": 0.4, "moving": 0.9, "stilling": 0.2}
    lines = [better, better | {"leaky": 0.0}, better | {"leaky": 0.1}, better | {"stilling": 0.9, "leaky": 0}]
    for name in ("leak", "stillness"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = describe_ranking(tmp_path)
    assert "leak: the planted LoRA ranked worse in 1 of 4 pairs; stillness: the planted" in said
    assert "worse in 3 of 4 pairs (2 seeds" in said
    assert run_planted(tmp_path, pairs=4) == said  # nothing is measured again


def test_a_clips_line_says_its_case_and_its_metrics():
    assert not set(METRIC_HELP) & {"variant", "clip", *Case._fields}


def test_a_variant_of_one_picture_trains_on_the_first_picture_alone(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(run, "train_subject", lambda backend, images, *rest: given.append(images))
    bench, case = open_bench(tmp_path), Case("ball", "zigzag", 0)
    for variant in VARIANTS:
        if variant.pictures or variant.name.startswith("SMRABooth"):
            run.train_case_subject(bench, variant.subject, case, variant.pictures)
    assert [len(images) for images in given] == [3, 1, 1, 1]
    assert {images[0].name for images in given} == {given[0][0].name}


class StubScorer:
    """Scores a video by the mean of its pixels."""

    def __init__(self, *files):
        pass

    def set_references(self, images, clip):
        assert len(images) == 3 and clip.shape == (17, 3, 64, 64)

    def score(self, videos):
        assert videos.shape == (1, 17, 3, 64, 64)
        return dict.fromkeys(SCORES, videos.mean().item())


def test_the_papers_metrics_stand_beside_the_classical_ones_of_the_same_clips(tmp_path, monkeypatch):
    shades, sampled = iter(range(1, 100)), []

    def sample(bench, variant, case, count):
        sampled.append(variant.name)
        return [(torch.full((17, 3, 64, 64), next(shades) / 100), "navy") for _ in range(count)]

    monkeypatch.setattr(paper_metrics, "sample_case", sample)
    monkeypatch.setattr(paper_metrics, "VideoScorer", StubScorer)
    monkeypatch.setattr(
        paper_metrics,
        "measure_clip",
        lambda clip, *rest: dict(likeness=1 - clip.mean().item(), x=0.2, y=clip.mean().item()),
    )
    size = BenchSize(("ball",), ("zigzag",), seeds=1, clips=2)
    told = paper_metrics.run_paper_metrics(tmp_path, size)
    assert sampled == list(paper_metrics.SCORED)
    assert (
        told == paper_metrics.run_paper_metrics(tmp_path, size) and len(sampled) == 5
    )  # nothing is done twice
    rows = told.split("\n\n")[0].splitlines()
    assert rows[0] == "| variant | n | DINO-I | fidelity | consistency | likeness | track |"
    # The clips of SMRABooth are the fifth and the sixth: pixels of 0.05 and 0.06.
    assert (
        rows[4].startswith("| SMRABooth (T_point 15) | 2 | 0.06 (")
        and "| 0.94 (" in rows[4]
        and "| 0.13 (" in rows[4]
    )
    assert told.endswith("over 10 clips: DINO-I and likeness -1.00, fidelity and track 1.00.")
