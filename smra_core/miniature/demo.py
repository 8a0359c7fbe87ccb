"""The whole method in one run on the miniature, from files to a report.

Nothing here is special: the readers, the trainer, the sampler and the files are those of a real run, only the
model is small. It shows that the method works, and none of its metrics is the paper's.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.motion_clip import MotionClip, read_motion_clip
from ..data.subject_set import SubjectSet, read_subject_set
from ..data.video import write_video
from ..evaluation.contact_sheet import write_contact_sheet
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
from ..standalone.progress_bar import TrainingBar
from ..storage.atomic_write import write_atomically
from ..storage.tensor_cache import TensorCache
from ..training.job import TrainedLora
from ..training.mora import MotionSettings
from ..training.motion import train_motion
from ..training.subject import train_subject
from ..training.sura import SubjectSettings
from .held_out_files import write_motion, write_subject
from .model_files import MINIATURE_FILES
from .small_settings import MOTION, MOTION_TRAINING, SAMPLING, SUBJECT, SUBJECT_TRAINING
from .weight_paths import DINOV2_FILE, SEA_RAFT_FILE

log = logging.getLogger("smrabooth")

SIZE = (SAMPLING.width, SAMPLING.height)
BACKGROUNDS = ("navy", "maroon", "black", "gray")
"""The demo's prompts put the subject before each of these."""
VIDEOS = len(BACKGROUNDS)


class Materials(NamedTuple):
    """What the demo learns from, and what it asks for."""

    subject: SubjectSet
    motion: MotionClip
    prompts: list[str]


@dataclass(frozen=True)
class Loras:
    """The method's two LoRAs, and the same two trained on all layers for comparison."""

    subject: TrainedLora
    motion: TrainedLora
    plain_subject: TrainedLora
    plain_motion: TrainedLora


def run_demo(
    out: Path, subject: Path | None = None, motion: Path | None = None, prompt: str | None = None
) -> Path:
    """Train both LoRAs, sample the four arms, measure and report; the path of report.html.

    Run again with the same inputs, it goes on where it stopped; finished parts are not repeated.
    """
    out.mkdir(parents=True, exist_ok=True)
    backend = StandaloneBackend(
        MINIATURE_FILES, out / "runs", TensorCache(out / "cache"), torch.device("cpu"), torch.float32
    )
    materials = read_materials(out, subject, motion, prompt)
    loras = train_all(backend, materials)
    chosen = arms(backend, loras)
    with tqdm(total=SAMPLING.steps * len(chosen), desc="sampling", unit="step") as bar:
        videos = generate(backend, materials.prompts, chosen, SAMPLING, on_step=lambda *_: bar.update())
    return write_results(out, materials, loras, chosen, videos)


def read_materials(out: Path, subject: Path | None, motion: Path | None, prompt: str | None) -> Materials:
    """Read the user's files, or write the demo's own to disk first and read those."""
    own = subject is None and motion is None
    folder = subject or write_subject(out / "data" / "subject")
    pictures = read_subject_set(folder, SIZE, require_masks=True)
    clip = read_motion_clip(motion or write_motion(out / "data" / "motion"), SIZE, SAMPLING.frames)
    for note in (*pictures.notes, *clip.notes):
        log.info("note: %s", note)
    if prompt is None and own:
        prompts = [f"a sks ball vvt moving on a {name} background" for name in BACKGROUNDS]
    else:
        prompts = [prompt or combined_prompt(pictures.images[0].caption, clip.caption)] * VIDEOS
    return Materials(pictures, clip, prompts)


def combined_prompt(subject_caption: str, motion_caption: str) -> str:
    """`A picture of sks dog` and `a person is vvt walking` make `a sks dog is vvt walking`.

    The subject is what follows "of", the motion what begins with the verb before `vvt`; captions of another
    form are put one after the other.
    """
    _, of, subject = subject_caption.partition(" of ")
    before, marker, after = motion_caption.partition("vvt ")
    if not of or not marker:
        return f"{subject_caption}, {motion_caption}"
    verb = "is " if before.rstrip().endswith(" is") else ""
    article = "" if subject.split()[0].lower() in ("a", "an", "the") else "a "
    return f"{article}{subject} {verb}vvt {after}"


def train_all(backend: StandaloneBackend, materials: Materials) -> Loras:
    """The method's LoRAs first, then those of the comparison."""

    def subject(label: str, settings: SubjectSettings) -> TrainedLora:
        with TrainingBar(f"subject LoRA, {label}") as report:
            return train_subject(
                backend, materials.subject.images, DINOV2_FILE, settings, SUBJECT_TRAINING, label, report
            )

    def motion(label: str, settings: MotionSettings) -> TrainedLora:
        with TrainingBar(f"motion LoRA, {label}") as report:
            return train_motion(
                backend, materials.motion, SEA_RAFT_FILE, settings, MOTION_TRAINING, label, report
            )

    return Loras(
        subject("sparse", SUBJECT),
        motion("sparse", MOTION),
        subject("all-layers", replace(SUBJECT, plan=ALL_LAYERS)),
        motion("all-layers", replace(MOTION, plan=ALL_LAYERS)),
    )


def arms(backend: StandaloneBackend, loras: Loras) -> list[Variant]:
    """The four ways to put the two LoRAs together that the demo compares."""
    spec = backend.spec
    constant = Strengths.from_value

    def pair(subject: TrainedLora, motion: TrainedLora, strengths: Strengths) -> tuple[ScheduledLora, ...]:
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
            pair(loras.plain_subject, loras.plain_motion, constant(late))),
        Variant("sparse", "each LoRA on its own linears, constant strength",
            pair(loras.subject, loras.motion, constant(late))),
        Variant("SMRABooth", f"sparse, subject {SUBJECT_STRENGTHS.early} before T_point and {late} after",
            pair(loras.subject, loras.motion, SUBJECT_STRENGTHS), TPoint()),
    ]  # fmt: skip


def write_results(
    out: Path, materials: Materials, loras: Loras, chosen: list[Variant], videos: Mapping[str, Tensor]
) -> Path:
    """Videos, pictures, metrics and the page that shows them."""
    judge = VideoScorer(DINOV2_FILE, SEA_RAFT_FILE)
    judge.set_references(materials.subject.images, materials.motion.frames)
    files = _save_loras(out, loras)
    shown = []
    for arm in chosen:
        name = f"{arm.name.replace(' ', '_')}.mp4"
        write_video(out / name, side_by_side(videos[arm.name]), SAMPLING.fps)
        shown.append(Video(arm.name, name, arm.description))
    metrics = {arm.name: judge.score(videos[arm.name]) for arm in chosen}
    _draw(out, materials, loras, chosen, videos, judge)
    about = {"prompts": materials.prompts, "sampling": asdict(SAMPLING), "arms": metrics}
    with write_atomically(out / "metrics.json") as draft:
        draft.write_text(json.dumps(about, indent=1), encoding="utf-8")
    page = out / "report.html"
    write_report(
        page, "SMRABooth on the miniature", _introduction(materials), shown, metrics, METRIC_HELP,
        _pictures(), files,
    )  # fmt: skip
    return page


def side_by_side(videos: Tensor) -> Tensor:
    """`B F 3 H W` to one clip `F 3 H B*W`."""
    return torch.cat(list(videos), -1)


def _save_loras(out: Path, loras: Loras) -> dict[str, str]:
    names = {"subject": loras.subject, "motion": loras.motion}
    names |= {"subject_all_layers": loras.plain_subject, "motion_all_layers": loras.plain_motion}
    for name, trained in names.items():
        for source, target in (
            (trained.path, f"{name}_lora.safetensors"),
            (trained.losses, f"{name}_losses.csv"),
        ):
            with write_atomically(out / target) as draft:
                draft.write_bytes(source.read_bytes())
    labels = {f"{name.replace('_', ' ')} LoRA": f"{name}_lora.safetensors" for name in names}
    return (
        labels
        | {f"{n.replace('_', ' ')} losses": f"{n}_losses.csv" for n in names}
        | {"metrics": "metrics.json"}
    )


def _draw(
    out: Path,
    materials: Materials,
    loras: Loras,
    chosen: list[Variant],
    videos: Mapping[str, Tensor],
    judge: "VideoScorer",
) -> None:
    reference = materials.motion.frames
    rows = [("reference motion\n" + materials.motion.caption, reference)]
    rows += [(f"{arm.name}\n{arm.description}", videos[arm.name][0]) for arm in chosen]
    frames = [0, 2, 4, 6, 8, 10, 12, 14, 16]
    write_contact_sheet(
        rows, out / "contact_sheet.png", [f for f in frames if f < len(reference)], materials.prompts[0]
    )
    flow_rows = [("reference", reference, judge.flow(reference))]
    flow_rows += [(arm.name, videos[arm.name][0], judge.flow(videos[arm.name][0])) for arm in chosen]
    write_flow_sheet(flow_rows, out / "flow.png", caption="Optical flow of the first video of each arm")
    curves = {"subject LoRA": loras.subject.losses, "motion LoRA": loras.motion.losses}
    draw_losses(curves, out / "losses.png")


def _introduction(materials: Materials) -> list[str]:
    captions = f"“{materials.subject.images[0].caption}” and “{materials.motion.caption}”"
    return [
        "A subject LoRA and a motion LoRA were trained on a tiny WAN, from the captions "
        f"{captions}, and put together in four ways. Every video is sampled from the same noise.",
        "This is a small world of painted shapes. It shows how the method works; its metrics are not the "
        "paper's, and four videos an arm show a direction, not evidence.",
    ]


def _pictures() -> list[Picture]:
    return [
        Picture("Contact sheet", "contact_sheet.png", "The same frames of every arm, from the same noise."),
        Picture(
            "Optical flow", "flow.png", "What the motion LoRA is trained to bring back: SEA-RAFT's flow."
        ),
        Picture("Losses", "losses.png", "Faint: every step. Strong: smoothed."),
    ]
