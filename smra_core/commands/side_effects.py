"""side-effects: measure whether a motion LoRA leaks its clip's look, and whether a subject LoRA stills."""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.clip_file import read_clip_file
from ..data.video import Selection
from ..encoders.dinov2 import load_dinov2
from ..encoders.sea_raft import SeaRaft, load_sea_raft
from ..evaluation.leak_meter import LeakMeter, combine_seeds
from ..evaluation.stillness_meter import compare_speeds, measure_speed
from ..lora.choice import RELEASE_ADAPTERS
from ..lora.reader import load_lora
from ..lora.schedule import ScheduledLora, Strengths
from ..miniature.model_files import MINIATURE
from ..miniature.weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from ..standalone.backend import StandaloneBackend
from ..standalone.generate import Variant, generate
from ..storage.on_demand import on_device
from ..wan.sampler import SamplingSettings
from .model_options import add_model, choose_encoder_file, open_backend
from .options import add_json, add_option, log_notes
from .settings_options import add_settings, read_settings

PROMPTS = ("a dog is walking in a garden", "a car is driving on a street", "a woman is dancing in a room")
MINIATURE_LEAK_PROMPTS = ("a circle vvt moving", "a triangle vvt moving")
MINIATURE_PROMPTS = (
    "a green plain circle moving left on a gray background",
    "a yellow striped triangle moving up on a maroon background",
)
"""Prompts in which something moves. Those for the leak have the motion's own words and leave the look open,
where a leak shows; of a LoRA for another model nobody but its user knows the words.
"""
FULL_STRENGTH = Strengths.from_value(1.0)
SEED_DISTANCE = 1000
"""Seeds between the noises of two seeds; the videos of one seed take one for each prompt."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_option(parser, "--motion", "Motion LoRA whose leak is measured. It needs --clip.", type=Path)
    add_option(parser, "--clip", "Clip that the motion LoRA was trained on.", type=Path)
    add_option(parser, "--subject", "Subject LoRA whose stillness is measured.", type=Path)
    add_option(
        parser, "--prompts",
        "Prompts in which something moves. For the leak: with the motion's own words, and without those of "
        "the clip's actor and place. For stillness: with the subject's word.",
        shown="three everyday scenes; for the miniature, two of its own", nargs="+",
    )  # fmt: skip
    add_option(parser, "--seeds", "Number of seeds. More narrow the interval.", 4, type=int)
    add_option(parser, "--dinov2", "DINOv2 weights, for the leak.", shown="the miniature's", type=Path)
    add_option(parser, "--sea-raft", "SEA-RAFT weights.", shown="the miniature's", type=Path)
    add_settings(
        parser, SamplingSettings(), ("steps", "shift", "guidance", "width", "height", "frames", "seed")
    )
    add_model(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Sample with each LoRA alone and without any, and print the numbers and verdicts."""
    _check(args)
    settings = read_settings(args, SamplingSettings())
    sea_raft_file = choose_encoder_file("SEA-RAFT", "--sea-raft", args.sea_raft, args.model, SEA_RAFT_FILE)
    if args.motion is not None:
        dinov2_file = choose_encoder_file("DINOv2", "--dinov2", args.dinov2, args.model, DINOV2_FILE)
    backend = open_backend(args)
    prompts = args.prompts or choose_prompts(args)
    files = {name: path for name in ("motion", "subject") if (path := getattr(args, name)) is not None}
    variants = [Variant("base", ""), *(load_alone(backend, name, path) for name, path in files.items())]
    sea_raft, meter = load_sea_raft(sea_raft_file), None
    if args.motion is not None:
        size = settings.width, settings.height
        clip = read_clip_file(args.clip, size, Selection(settings.frames, fps=backend.spec.latents.fps))
        dinov2 = load_dinov2(dinov2_file, backend.device)
        with on_device(backend.device, dinov2, sea_raft):
            meter = LeakMeter(dinov2, sea_raft, clip.frames)
    seeds = sample_seeds(backend, prompts, variants, settings, args.seeds)
    results = measure(seeds, meter, sea_raft, backend.device)
    print(_to_json(results) if args.json else "\n".join(verdict for _, verdict in results.values()))


def choose_prompts(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the prompts where none are given, and say what they lack."""
    if args.model in (None, MINIATURE):
        return MINIATURE_LEAK_PROMPTS if args.motion is not None else MINIATURE_PROMPTS
    log_notes(
        ["No --prompts are given. Everyday scenes are used, which lack the words of the LoRA's caption; with "
         "them, and with the look left open, side effects show more."]
    )  # fmt: skip
    return PROMPTS


def load_alone(backend: StandaloneBackend, name: str, path: Path) -> Variant:
    """Load a LoRA to be sampled with alone, at full strength; `name` is motion or subject."""
    loaded = load_lora(path, backend.spec, adapter=RELEASE_ADAPTERS[name])
    return Variant(name, "", (ScheduledLora(loaded.lora, FULL_STRENGTH, loaded.metadata.get_noise_range()),))


def measure(
    seeds: Iterable[dict[str, Tensor]], meter: LeakMeter | None, sea_raft: SeaRaft, device: torch.device
) -> dict[str, tuple]:
    """Return leak and stillness with their verdicts, of the videos by the variant's name of each seed.

    Each seed is measured as it comes, so that the videos of one are in memory. The nets are on the device
    only then: while a seed is sampled, the DiT needs it.
    """
    nets = [sea_raft] if meter is None else [sea_raft, meter.dinov2]
    leaks, speeds, base_speeds = [], [], []
    for videos in seeds:
        with on_device(device, *nets):
            if meter is not None:
                leaks.append(meter.measure_seed(videos["motion"], videos["base"]))
            if "subject" in videos:
                speeds.append(measure_speed(sea_raft, videos["subject"]))
                base_speeds.append(measure_speed(sea_raft, videos["base"]))
    results: dict[str, tuple] = {}
    if leaks:
        leak = combine_seeds(leaks)
        results["leak"] = (leak, leak.describe())
    if speeds:
        stillness = compare_speeds(speeds, base_speeds)
        results["stillness"] = (stillness, stillness.describe())
    return results


def sample_seeds(
    backend: StandaloneBackend,
    prompts: Sequence[str],
    variants: Sequence[Variant],
    settings: SamplingSettings,
    seeds: int,
) -> Iterator[dict[str, Tensor]]:
    """Yield for each seed the videos `B F 3 H W` in [0, 1] by the variant's name, from the same noise."""
    with tqdm(total=seeds * len(variants) * settings.steps, desc="sampling", unit="step") as bar:
        for number in range(seeds):
            seed = settings.seed + SEED_DISTANCE * number
            yield generate(
                backend, prompts, variants, replace(settings, seed=seed), on_step=lambda *_: bar.update()
            )


def _check(args: argparse.Namespace) -> None:
    if args.motion is None and args.subject is None:
        raise ValueError("No LoRA is given. Give --motion LORA with --clip CLIP, or --subject LORA, or both.")
    if (args.motion is None) != (args.clip is None):
        raise ValueError("--motion and --clip belong together: the LoRA, and the clip it was trained on.")
    if args.seeds < 2:
        raise ValueError(f"--seeds must be at least 2 for an interval, got {args.seeds}. The default is 4.")


def _to_json(results: dict[str, tuple]) -> str:
    """Return the intervals of leak and stillness, null where one was not measured, and the verdicts."""
    content = {
        name: {part: one and one._asdict() for part, one in value._asdict().items()} | {"verdict": verdict}
        for name, (value, verdict) in results.items()
    }
    return json.dumps(content)
