"""The paper's metrics of the bench's main variants, and how they rank clips beside classical measurements.

Both are of the same clips. DINO-I and temporal consistency are computed with the miniature's DINOv2, motion
fidelity along SEA-RAFT's flow. CLIP's metrics are left out, as no CLIP is small enough to come with the pack.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...evaluation.video_scorer import VideoScorer
from ..weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from .metrics import measure_clip
from .role_videos import correlate_ranks
from .run import FULL, Bench, BenchSize, Case, list_cases, open_bench, read_finished, sample_case
from .table import read_clips, render_differences, render_means
from .variants import VARIANTS, BenchVariant

SCORES_FILE = "paper_metrics.jsonl"
SCORED = ("base, no LoRA", "plain LoRAs", "SMRABooth (T_point 15)", "without SuRA", "without MoRA")
COLUMNS = {
    "DINO-I": "DINO-I (DINOv2)",
    "fidelity": "Motion Fidelity (flow)",
    "consistency": "Temporal Consistency",
    "likeness": "likeness",
    "track": "track",
}
"""Column -> metric of the scorer, or classical measurement: likeness, and the mean of x and y."""
PAIRS = (("DINO-I", "likeness"), ("fidelity", "track"))
"""Metrics of the paper, each with the classical measurement of the same thing."""


def run_paper_metrics(folder: Path, size: BenchSize = FULL) -> str:
    """Score every case and variant that is not in the file yet; return the table, the differences to
    SMRABooth, and the rank correlations.

    LoRAs are those of the bench's folder; what is not trained there is trained.
    """
    bench, path = open_bench(folder), folder / SCORES_FILE
    finished, scorer = read_finished(path), VideoScorer(DINOV2_FILE, SEA_RAFT_FILE)
    variants = [variant for variant in VARIANTS if variant.name in SCORED]
    for case in list_cases(size):
        for variant in variants:
            if (variant.name, case) not in finished:
                lines = list(score_case(bench, scorer, variant, case, size.clips))
                with open(path, "a", encoding="utf-8") as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)
    clips = read_clips(path)
    tables = render_means(clips, COLUMNS), render_differences(clips, columns=tuple(COLUMNS))
    return "\n\n".join([*tables, describe_ranks(clips)])


def score_case(
    bench: Bench, scorer: VideoScorer, variant: BenchVariant, case: Case, count: int
) -> Iterator[dict]:
    """Sample a case's clips and score them; yield a dictionary for each clip."""
    scorer.set_references(bench.write_images(case.subject), bench.write_clip(case.motion).frames)
    for number, (video, background) in enumerate(sample_case(bench, variant, case, count)):
        measured = measure_clip(video, case.subject, case.motion, background)
        measured["track"] = (measured["x"] + measured["y"]) / 2
        values = scorer.score(video[None]) | measured
        scores = {column: round(values[name], 4) for column, name in COLUMNS.items()}
        yield {"variant": variant.name, **case._asdict(), "clip": number, **scores}


def describe_ranks(clips: Sequence[dict]) -> str:
    """Say how alike each metric of the paper and its classical measurement rank all clips."""
    told = []
    for paper, classical in PAIRS:
        correlation = correlate_ranks(*([clip[column] for clip in clips] for column in (paper, classical)))
        told.append(f"{paper} and {classical} {correlation:.2f}")
    return f"Spearman's rank correlation over {len(clips)} clips: {', '.join(told)}."
