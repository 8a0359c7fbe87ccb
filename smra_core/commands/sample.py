"""sample: make a video with a subject and a motion LoRA."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..data.video import write_video
from ..evaluation.switch_plot import draw_switch
from ..lora.adapter import restrict
from ..lora.applied_range import APPLIED_RANGES, AS_TRAINED, EVERYWHERE, describe_applied, describe_gain
from ..lora.choice import RELEASE_ADAPTERS
from ..lora.plan import SparsePlan
from ..lora.reader import load_lora
from ..lora.schedule import (
    MOTION_STRENGTHS,
    STRENGTH_PRESETS,
    ScheduledLora,
    Strengths,
    TPoint,
    describe_run,
)
from ..lora.settled_switch import SettledSwitch, check_frames, describe_switch
from ..standalone.generate import Variant, generate
from ..standalone.output_file import VIDEO_ENDINGS, check_output_file, write_or_rescue
from ..wan.flow_matching import sampling_sigmas
from ..wan.noise_range import WHOLE
from ..wan.sampler import SamplingSettings
from ..wan.spec import LATENTS_21, LatentSpace, WanSpec, latent_frames
from .model_options import add_model, open_backend
from .options import add_json, add_option, print_result, wrap_parser
from .settings_options import add_settings, read_settings

log = logging.getLogger("smrabooth")
SETTLED = "settled"
"""T_point of a run that switches by itself."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("prompt", help="Prompt, such as 'a sks dog is vvt walking on the moon'.")
    add_option(parser, "--negative", "What the video should not show.", "", "nothing")
    add_option(parser, "--subject", "Subject LoRA file.", type=Path)
    add_option(parser, "--motion", "Motion LoRA file.", type=Path)
    add_option(
        parser, "--preset", "Strengths of the subject LoRA before and after T_point.", "paper",
        choices=STRENGTH_PRESETS,
    )  # fmt: skip
    add_option(
        parser, "--subject-strength",
        "Strengths of the subject LoRA, early,late or one number for both. They replace the preset's.",
        type=wrap_parser(parse_strengths),
    )  # fmt: skip
    add_option(
        parser, "--motion-strength", "Strengths of the motion LoRA, early,late or one number for both.",
        MOTION_STRENGTHS, f"{MOTION_STRENGTHS.early},{MOTION_STRENGTHS.late}",
        type=wrap_parser(parse_strengths),
    )  # fmt: skip
    for purpose in ("subject", "motion"):
        add_option(
            parser, f"--{purpose}-plan", f"Plan of the {purpose} LoRA's layers to use, such as q,k,ffn.0.",
            shown="all that the file has", type=wrap_parser(SparsePlan.parse),
        )  # fmt: skip
    add_option(
        parser, "--t-point",
        "Noise level at which the strengths switch: a sigma (0.7), a step of a run (15/50, or 15/50@5 at "
        "shift 5), or 'settled': where the motion of this run stops changing, with a picture of it.",
        TPoint(), str(TPoint().sigma), type=wrap_parser(parse_t_point),
    )  # fmt: skip
    add_option(
        parser, "--noise-range",
        "Noise levels at which a LoRA is applied that was trained at a part of them: 'as trained' at these "
        "alone, or everywhere.",
        AS_TRAINED, choices=APPLIED_RANGES,
    )  # fmt: skip
    add_option(parser, "--video", "Video file to write, .mp4.", Path("video.mp4"), type=Path)
    add_settings(parser, SamplingSettings())
    add_model(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Sample a video, write it and print its path."""
    settings = read_settings(args, SamplingSettings())
    if isinstance(args.t_point, SettledSwitch):
        check_frames(latent_frames(settings.frames))
    # H.264 of 8 bits and 4:2:0 takes far less than the pixels themselves, 1.5 bytes each.
    size = settings.frames * settings.width * settings.height * 3 // 2
    check_output_file(args.video, VIDEO_ENDINGS, size)
    backend = open_backend(args)
    loras = _load_loras(args, backend.spec)
    variant = Variant("video", "", tuple(loras), args.t_point)
    sigmas = sampling_sigmas(settings.steps, settings.shift).tolist()
    _log_schedule(loras, args.t_point, sigmas)
    with tqdm(total=settings.steps, desc="sampling", unit="step") as bar:
        videos = generate(backend, [args.prompt], [variant], settings, args.negative, lambda *_: bar.update())
    fps = choose_fps(args.fps, settings, backend.spec.latents)
    written = write_or_rescue(args.video, lambda path: write_video(path, videos["video"][0], fps))
    if isinstance(args.t_point, SettledSwitch):
        _report_switch(written, args.t_point, sigmas)
    print_result(args, written, fps=fps, frames=settings.frames, seed=settings.seed)


def _load_loras(args: argparse.Namespace, spec: WanSpec) -> list[ScheduledLora]:
    """Load the LoRAs that the options name, each in its own layers and with its own strengths."""
    subject_strengths = args.subject_strength or STRENGTH_PRESETS[args.preset]
    chosen = [
        ("subject", args.subject, args.subject_plan, subject_strengths),
        ("motion", args.motion, args.motion_plan, args.motion_strength),
    ]
    loras = []
    for purpose, path, plan, strengths in chosen:
        if path is not None:
            loaded = load_lora(path, spec, adapter=RELEASE_ADAPTERS[purpose])
            trained_at = loaded.metadata.get_noise_range() if args.noise_range == AS_TRAINED else WHOLE
            loras.append(ScheduledLora(restrict(loaded.lora, plan, path.name), strengths, trained_at))
            if gain := describe_gain(purpose, trained_at, f"--noise-range {EVERYWHERE}"):
                log.info("%s: %s", path.name, gain)
    return loras


def choose_fps(given: int | None, settings: SamplingSettings, latents: LatentSpace) -> float:
    """Return the frame rate of the video: the one that was given, else the paper's for the models that have
    WAN 2.1's latents, and for others their own.
    """
    return settings.fps if given is not None or latents is LATENTS_21 else latents.fps


def _report_switch(video: Path, switch: SettledSwitch, sigmas: Sequence[float]) -> None:
    """Log where a finished run has switched, and write the picture of it beside its video."""
    log.info("%s", describe_switch(switch, sigmas))
    picture = video.with_name(f"{video.stem}_t_point.png")
    log.info("picture of the switch: %s", write_or_rescue(picture, draw_switch(switch, sigmas).save))


def _log_schedule(
    loras: Sequence[ScheduledLora], t_point: TPoint | SettledSwitch, sigmas: Sequence[float]
) -> None:
    if loras and isinstance(t_point, TPoint):
        log.info("%s", describe_run(t_point, sigmas))
    for one in loras:
        if not one.noise_range.is_whole:
            log.info("%s", describe_applied(one.noise_range, sigmas))


def parse_strengths(text: str) -> Strengths:
    """Return the strengths that a text gives, `early,late` or one number for both.

    Raises ValueError for anything else.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 2):
        raise ValueError(f"{text!r} is no strength. Give one number, or two as early,late.")
    return Strengths(values[0], values[-1])


def parse_t_point(text: str) -> TPoint | SettledSwitch:
    """Return T_point from a sigma, or from a step as `15/50` or `15/50@5` at shift 5; for `settled` a new
    switch, for one run.

    Raises ValueError for anything else.
    """
    if text == SETTLED:
        return SettledSwitch()
    run, _, shift = text.partition("@")
    step, is_step, steps = run.partition("/")
    try:
        if not is_step:
            return TPoint(float(run))
        return TPoint.from_step(int(step), int(steps), float(shift or 1))
    except ValueError as error:
        raise ValueError(
            f"{text!r} is no noise level ({error}). Give a sigma such as 0.7, a step such as 15/50, "
            f"15/50@5 for shift 5, or {SETTLED}."
        ) from error
