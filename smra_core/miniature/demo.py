"""Demo of the whole method in one run on the miniature, from files to a report.

Readers, trainer, sampler and files are those of a real run; only the model is small. It shows how the method
works; its metrics are not comparable with the paper's.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..data.motion_clip import MotionClip, read_motion_clip
from ..data.subject_set import SubjectImage, SubjectSet, read_subject_set
from ..data.video import write_video
from ..evaluation.contact_sheet import (
    SheetRow,
    choose_indices,
    draw_contact_sheet,
    draw_sheet,
    save_png,
    stack_sheets,
    to_sheet_picture,
)
from ..evaluation.flow_colors import write_flow_sheet
from ..evaluation.loss_plot import draw_losses
from ..evaluation.report_page import Picture, Video, write_report
from ..evaluation.video_scorer import METRIC_HELP, VideoScorer
from ..lora.adapter import Lora
from ..lora.plan import ALL_LAYERS
from ..lora.reader import load_lora
from ..lora.schedule import MOTION_STRENGTHS, SUBJECT_STRENGTHS, ScheduledLora, Strengths, TPoint
from ..standalone.backend import StandaloneBackend
from ..standalone.generate import Variant, generate
from ..standalone.output_file import check_output_folder
from ..standalone.progress_bar import TrainingBar
from ..storage.atomic_write import write_atomically
from ..storage.tensor_cache import TensorCache
from ..training.job import TrainedLora
from ..training.motion import train_motion
from ..training.motion_settings import MotionSettings
from ..training.subject import train_subject
from ..training.sura import SubjectSettings
from ..wan.sampler import SamplingSettings
from .held_out_files import write_motion, write_subject
from .model_files import MINIATURE_FILES
from .small_settings import MOTION, MOTION_TRAINING, SAMPLING, SUBJECT, SUBJECT_TRAINING
from .weight_paths import DINOV2_FILE, SEA_RAFT_FILE

log = logging.getLogger("smrabooth")

SIZE = (SAMPLING.width, SAMPLING.height)
BACKGROUNDS = ("navy", "maroon", "black", "gray")
"""Backgrounds of the demo's prompts, one for each."""
VIDEOS = len(BACKGROUNDS)
"""Number of videos of each variant."""
SHEET_FRAMES = range(0, SAMPLING.frames, 2)
"""Frames on the contact sheet, of which a shorter clip shows those that it has."""
METRICS_FILE = "metrics.json"
PICTURES = [
    Picture("Contact sheet", "contact_sheet.png", "The same frames of every variant, from the same noise."),
    Picture("Optical flow", "flow.png", "What the motion LoRA is trained to reproduce: SEA-RAFT's flow."),
    Picture("Losses", "losses.png", "Faint: every step. Strong: smoothed."),
]


class Materials(NamedTuple):
    """Subject and motion that the demo trains on, and what it samples."""

    subject: SubjectSet
    motion: MotionClip
    prompts: list[str]
    sampling: SamplingSettings
    """Settings whose videos are as long as the clip, because the metrics compare the two."""


@dataclass(frozen=True)
class Loras:
    """The method's two LoRAs, and the same two trained on all layers for comparison."""

    subject: TrainedLora
    motion: TrainedLora
    plain_subject: TrainedLora
    plain_motion: TrainedLora


def run_demo(
    out: Path,
    subject: Path | None = None,
    motion: Path | None = None,
    prompt: str | None = None,
    subject_caption: str | None = None,
    motion_caption: str | None = None,
) -> Path:
    """Train the LoRAs, sample the four variants, and write their metrics and a report; return its path.

    `subject` and `motion` are a user's own folder or clip, and `prompt` is what to sample; without them the
    demo's own are used. The captions replace those of the user's files. Called again with the same inputs, it
    continues where it stopped and trains nothing twice. ValueError if nothing can be written to `out`, or for
    files that cannot be used, before anything is trained.
    """
    check_output_folder(out)
    backend = StandaloneBackend(
        MINIATURE_FILES, out / "runs", TensorCache(out / "cache"), torch.device("cpu"), torch.float32
    )
    materials = read_materials(out, subject, motion, prompt, subject_caption, motion_caption)
    loras = train_all(backend, materials)
    variants = build_variants(backend, loras)
    sampling = materials.sampling
    with tqdm(total=sampling.steps * len(variants), desc="sampling", unit="step") as bar:
        videos = generate(backend, materials.prompts, variants, sampling, on_step=lambda *_: bar.update())
    return write_results(out, materials, loras, variants, videos)


def read_materials(
    out: Path,
    subject: Path | None,
    motion: Path | None,
    prompt: str | None,
    subject_caption: str | None = None,
    motion_caption: str | None = None,
) -> Materials:
    """Read the user's files; write the demo's own to disk first where the user gives none."""
    own = subject is None and motion is None
    folder = subject or write_subject(out / "data" / "subject")
    pictures = read_subject_set(folder, SIZE, caption=subject_caption)
    _check_masks(pictures.images)
    video = motion or write_motion(out / "data" / "motion")
    clip = read_motion_clip(video, SIZE, SAMPLING.frames, caption=motion_caption)
    for note in (*pictures.notes, *clip.notes):
        log.info("note: %s", note)
    if prompt is None and own:
        prompts = [f"a sks ball vvt moving on a {name} background" for name in BACKGROUNDS]
    else:
        prompts = [prompt or combine_captions(pictures.images[0].caption, clip.caption)] * VIDEOS
    return Materials(pictures, clip, prompts, replace(SAMPLING, frames=len(clip.frames)))


def _check_masks(images: Sequence[SubjectImage]) -> None:
    """Raise ValueError for pictures without a mask, because the demo has no SAM that could find one."""
    without_mask = [image.name for image in images if image.mask_px is None]
    if without_mask:
        raise ValueError(
            f"{len(without_mask)} of {len(images)} pictures have no mask, first {without_mask[0]}. The demo "
            "needs one for each: white on the subject, under the picture's name, in masks/."
        )


def combine_captions(subject_caption: str, motion_caption: str) -> str:
    """Combine `A picture of sks dog` and `a person is vvt walking` to `a sks dog is vvt walking`.

    The subject is the text after "of"; the motion begins with "is" before `vvt`, or else with `vvt`. Captions
    of another form are joined with a comma.
    """
    _, of, subject = subject_caption.partition(" of ")
    before, marker, after = motion_caption.partition("vvt ")
    if not of or not marker:
        return f"{subject_caption}, {motion_caption}"
    verb = "is " if before.rstrip().endswith(" is") else ""
    article = "" if subject.split()[0].lower() in ("a", "an", "the") else "a "
    return f"{article}{subject} {verb}vvt {after}"


def train_all(backend: StandaloneBackend, materials: Materials) -> Loras:
    """Train the method's two LoRAs, then the two on all layers for comparison."""

    def train_on_subject(label: str, settings: SubjectSettings) -> TrainedLora:
        with TrainingBar(f"subject LoRA, {label}") as report:
            return train_subject(
                backend, materials.subject.images, DINOV2_FILE, settings, SUBJECT_TRAINING, label, report
            )

    def train_on_motion(label: str, settings: MotionSettings) -> TrainedLora:
        with TrainingBar(f"motion LoRA, {label}") as report:
            return train_motion(
                backend, [materials.motion], SEA_RAFT_FILE, settings, MOTION_TRAINING, label, report
            )

    return Loras(
        train_on_subject("sparse", SUBJECT),
        train_on_motion("sparse", MOTION),
        train_on_subject("all-layers", replace(SUBJECT, plan=ALL_LAYERS)),
        train_on_motion("all-layers", replace(MOTION, plan=ALL_LAYERS)),
    )


def build_variants(backend: StandaloneBackend, loras: Loras) -> list[Variant]:
    """Return the four variants that the demo compares: no LoRA, and three combinations of two LoRAs."""
    spec = backend.spec
    constant = Strengths.from_value

    def schedule_pair(
        subject: TrainedLora, motion: TrainedLora, strengths: Strengths
    ) -> tuple[ScheduledLora, ...]:
        def load(trained: TrainedLora) -> Lora:
            return load_lora(trained.path, spec).lora

        return (
            ScheduledLora(load(subject), strengths),
            ScheduledLora(load(motion), MOTION_STRENGTHS),
        )

    late = SUBJECT_STRENGTHS.late
    return [
        Variant("base", "no LoRA"),
        Variant("all layers", "both LoRAs on every linear, constant strength",
            schedule_pair(loras.plain_subject, loras.plain_motion, constant(late))),
        Variant("sparse", "each LoRA on its own linears, constant strength",
            schedule_pair(loras.subject, loras.motion, constant(late))),
        Variant("SMRABooth", f"sparse, subject {SUBJECT_STRENGTHS.early} before T_point and {late} after",
            schedule_pair(loras.subject, loras.motion, SUBJECT_STRENGTHS), TPoint()),
    ]  # fmt: skip


def write_results(
    out: Path, materials: Materials, loras: Loras, variants: list[Variant], videos: Mapping[str, Tensor]
) -> Path:
    """Write videos, LoRAs, pictures, metrics.json and the page that shows them; return the page's path.

    `videos` are `B F 3 H W` in [0, 1], by the variant's name.
    """
    scorer = VideoScorer(DINOV2_FILE, SEA_RAFT_FILE)
    scorer.set_references(materials.subject.images, materials.motion.frames)
    metrics = {variant.name: scorer.score(videos[variant.name]) for variant in variants}
    shown = _write_videos(out, variants, videos)
    links = _copy_loras(out, loras)
    _draw_pictures(out, materials, loras, variants, videos, scorer)
    about = {"prompts": materials.prompts, "sampling": asdict(materials.sampling), "variants": metrics}
    with write_atomically(out / METRICS_FILE) as draft:
        draft.write_text(json.dumps(about, indent=1), encoding="utf-8")
    links["metrics"] = METRICS_FILE
    page = out / "report.html"
    write_report(
        page, "SMRABooth on the miniature", _write_introduction(materials), shown, metrics, METRIC_HELP,
        PICTURES, links,
    )  # fmt: skip
    return page


def _write_videos(out: Path, variants: list[Variant], videos: Mapping[str, Tensor]) -> list[Video]:
    """Write an MP4 of each variant, its videos side by side; return what the page shows of them."""
    shown = []
    for variant in variants:
        name = f"{variant.name.replace(' ', '_')}.mp4"
        write_video(out / name, join_side_by_side(videos[variant.name]), SAMPLING.fps)
        shown.append(Video(variant.name, name, variant.description))
    return shown


def join_side_by_side(videos: Tensor) -> Tensor:
    """Join videos `B F 3 H W` side by side to one clip `F 3 H B*W`."""
    return torch.cat(list(videos), -1)


def _copy_loras(out: Path, loras: Loras) -> dict[str, str]:
    """Copy each LoRA and its table of losses to the demo's folder; return label -> file name."""
    trained = {
        "subject": loras.subject,
        "motion": loras.motion,
        "subject all layers": loras.plain_subject,
        "motion all layers": loras.plain_motion,
    }
    stems = {label: label.replace(" ", "_") for label in trained}
    lora_links = {f"{label} LoRA": f"{stem}_lora.safetensors" for label, stem in stems.items()}
    loss_links = {f"{label} losses": f"{stem}_losses.csv" for label, stem in stems.items()}
    for links, sources in (
        (lora_links, [each.path for each in trained.values()]),
        (loss_links, [each.losses for each in trained.values()]),
    ):
        for name, source in zip(links.values(), sources, strict=True):
            with write_atomically(out / name) as draft:
                draft.write_bytes(source.read_bytes())
    return lora_links | loss_links


def _draw_pictures(
    out: Path,
    materials: Materials,
    loras: Loras,
    variants: list[Variant],
    videos: Mapping[str, Tensor],
    scorer: VideoScorer,
) -> None:
    """Draw the contact sheet, the optical flow and the losses: the files that PICTURES names.

    The first video of each variant is shown, below the subject's pictures and the reference motion.
    """
    sheet, flow, losses = (out / picture.file for picture in PICTURES)
    reference = materials.motion.frames
    firsts = [(variant, videos[variant.name][0]) for variant in variants]
    rows = [("reference motion\n" + materials.motion.caption, reference)]
    rows += [(f"{variant.name}\n{variant.description}", video) for variant, video in firsts]
    shown = [index for index in SHEET_FRAMES if index < len(reference)]
    subject = draw_subject(materials.subject.images, len(shown), materials.prompts[0])
    save_png(stack_sheets([subject, draw_contact_sheet(rows, shown)]), sheet)
    flow_rows = [("reference", reference, scorer.flow(reference))]
    flow_rows += [(variant.name, video, scorer.flow(video)) for variant, video in firsts]
    write_flow_sheet(flow_rows, flow, caption="Optical flow of the first video of each variant")
    draw_losses({"subject LoRA": loras.subject.losses, "motion LoRA": loras.motion.losses}, losses)


def draw_subject(images: Sequence[SubjectImage], most: int, caption: str) -> Image.Image:
    """Draw at most so many pictures of the subject as a sheet of one row."""
    chosen = [images[index] for index in choose_indices(len(images), most)]
    row = SheetRow(describe_subject(images), [to_sheet_picture(image.pixels) for image in chosen])
    return draw_sheet([row], [f"picture {number}" for number in range(1, len(chosen) + 1)], caption)


def describe_subject(images: Sequence[SubjectImage]) -> str:
    """Return the label of the subject's row: the caption of its pictures, or the first of several."""
    captions = list(dict.fromkeys(image.caption for image in images))
    more = f", and {len(captions) - 1} more" if len(captions) > 1 else ""
    return f"subject\n{captions[0]}{more}"


def _write_introduction(materials: Materials) -> list[str]:
    """Return the paragraphs that the page begins with."""
    captions = f"“{materials.subject.images[0].caption}” and “{materials.motion.caption}”"
    return [
        "A subject LoRA and a motion LoRA were trained on a tiny WAN, from the captions "
        f"{captions}, and combined in four ways. Every video is sampled from the same noise.",
        "This is a small world of painted shapes. It shows how the method works; its metrics are not "
        "comparable with the paper's, and four videos of a variant show a direction, not evidence.",
    ]
