"""The SMRA Load Subject Folder and Load Motion Clip nodes: read the authors' data layout, encode captions."""

import glob
from pathlib import Path

import torch
from comfy_api.latest import io

from ..smra_core.data.metadata_table import TABLE_NAMES, TABLE_SUFFIXES
from ..smra_core.data.motion_clip import FEWEST_FRAMES
from ..smra_core.data.motion_set import read_motion_set
from ..smra_core.data.picture import PICTURE_SUFFIXES
from ..smra_core.data.subject_set import SubjectImage, read_subject_set
from ..smra_core.data.video import Selection
from ..smra_core.training.mora import MotionSettings
from ..smra_core.training.sura import SubjectSettings
from ..smra_core.wan.spec import LATENTS_21, LATENTS_22, LatentSpace, latent_frames
from .host.images import as_image
from .host.input_folder import resolve_input
from .host.widgets import show_notes

SUBJECT, MOTION = SubjectSettings(), MotionSettings()
FRAME_RATES: dict[str, tuple[float | None, LatentSpace]] = {
    f"{LATENTS_21.fps:g} fps": (LATENTS_21.fps, LATENTS_21),
    "as they are": (None, LATENTS_21),
    f"{LATENTS_22.fps:g} fps (TI2V-5B)": (LATENTS_22.fps, LATENTS_22),
}
"""Choices of the loaders of clips: the rate that each reads at, and the latents of the models it is for."""


class LoadSubjectFolder(io.ComfyNode):
    """Node that reads pictures, masks and captions from a folder."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRALoadSubjectFolder",
            display_name="SMRA Load Subject Folder",
            category="SMRABooth",
            description=(
                "Reads a subject's pictures, masks and captions from a folder: one with a metadata.csv, as "
                "the authors have it, or plain pictures with masks/ and .txt captions beside them."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="WAN's text encoder, for the captions."),
                make_folder_input(
                    "Name of a folder in ComfyUI's input folder. A folder elsewhere needs a link there."
                ),
                make_caption_input("A picture of sks dog"),
                *make_size_inputs(SUBJECT.width, SUBJECT.height),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The pictures, cropped to width and height."),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="Masks of the pictures; black all over where the folder has none.",
                ),
                io.Conditioning.Output(display_name="positive", tooltip="One prompt for each picture."),
                io.String.Output(
                    display_name="captions",
                    tooltip="The prompts in words, one a line, for the training node's captions.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, folder: str, caption: str, width: int, height: int) -> io.NodeOutput:
        LATENTS_21.check_size(width, height)
        found = read_subject_set(resolve_input(folder), (width, height), caption=caption.strip() or None)
        show_notes(cls, f"{len(found.images)} pictures", found.notes)
        pictures = torch.stack([image.pixels for image in found.images])
        masks = torch.cat([_fill_mask(image) for image in found.images])
        captions = [image.caption for image in found.images]
        return io.NodeOutput(as_image(pictures), masks, encode_captions(clip, captions), "\n".join(captions))

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **_) -> str:
        return describe_files(folder)


class LoadMotionClip(io.ComfyNode):
    """Node that reads the clips of a motion and their captions."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRALoadMotionClip",
            display_name="SMRA Load Motion Clip",
            category="SMRABooth",
            description=(
                "Reads a clip and its caption, or all clips of a folder as one motion: a video, GIF or "
                "animated WebP, numbered pictures, or a folder of videos with captions in .txt files, a "
                "metadata.csv or a metadata.jsonl. The frames are brought to the rate of WAN's videos and "
                "cut to 4n+1, as WAN needs."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="WAN's text encoder, for the caption."),
                make_folder_input(
                    "Name of a video or a folder in ComfyUI's input folder. One elsewhere needs a link there."
                ),
                make_caption_input("a person is vvt walking"),
                io.Int.Input(
                    "frame_count", default=MOTION.frames, min=FEWEST_FRAMES, max=257, step=4,
                    tooltip="Frames to read, 4n+1. Raising it shows more motion and needs more memory.",
                ),
                io.Int.Input(
                    "start", default=0, min=0, max=100_000,
                    tooltip="Number of the first frame, as the file counts them. Raising it skips the "
                    "beginning of the clip.",
                ),
                io.Int.Input(
                    "stride", default=1, min=1, max=16,
                    tooltip="Distance between two frames that are read, counted at frame_rate. Raising it "
                    "skips frames, so that the motion gets faster.",
                ),
                *make_size_inputs(MOTION.width, MOTION.height),
                io.Combo.Input(
                    "frame_rate", options=[*FRAME_RATES], default=next(iter(FRAME_RATES)), optional=True,
                    tooltip="Frame rate that the clip is brought to by the times of its frames. WAN's videos "
                    "have 16 frames per second and TI2V-5B's 24; at the model's rate the motion keeps its "
                    "speed. 'as they are' takes every frame, which makes the motion of a 60 fps clip 3.75 "
                    "times slower.",
                ),
                io.Boolean.Input(
                    "own_sizes", default=False, optional=True,
                    tooltip="Let each clip keep its own shape, with at most as many pixels as width x "
                    "height. Off, all are cropped to that size. Turn it on in SMRA Training Options as well.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="frames",
                    is_output_list=True,
                    tooltip="The clip, cropped to width and height. Of a folder it is a list of all clips.",
                ),
                io.Conditioning.Output(
                    display_name="positive", is_output_list=True, tooltip="The prompt of each clip, encoded."
                ),
                io.String.Output(
                    display_name="captions",
                    is_output_list=True,
                    tooltip="The prompts in words, for the training node's captions.",
                ),
                io.Float.Output(
                    display_name="fps",
                    is_output_list=True,
                    tooltip="Frames per second of each clip, after frame_rate and stride.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        clip,
        folder: str,
        caption: str,
        frame_count: int,
        start: int,
        stride: int,
        width: int,
        height: int,
        frame_rate: str = next(iter(FRAME_RATES)),
        own_sizes: bool = False,
    ) -> io.NodeOutput:
        fps, latents = FRAME_RATES[frame_rate]
        latents.check_size(width, height)
        latent_frames(frame_count)
        selection = Selection(frame_count, start, stride, fps, latents.fps)
        clips, notes = read_motion_set(
            resolve_input(folder), (width, height), selection, caption,
            latents.token_pixels if own_sizes else None,
        )  # fmt: skip
        heading = f"{len(clips[0].frames)} frames of {clips[0].name}"
        show_notes(cls, heading if len(clips) == 1 else f"{len(clips)} clips", notes)
        captions = [found.caption for found in clips]
        return io.NodeOutput(
            [as_image(found.frames) for found in clips],
            [encode_captions(clip, [words]) for words in captions],
            captions,
            [found.fps for found in clips],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **_) -> str:
        return describe_files(folder)


def describe_files(folder: str | None) -> str:
    """Return names, sizes and times of the files, by which ComfyUI sees that they have changed.

    For a linked folder ComfyUI asks without its value (None). The answer is then always the same, so that the
    node runs again when the linked text changes and not at every queue.
    """
    if folder is None or not folder.strip():
        return ""
    files = sorted(_list_read_files(resolve_input(folder)))
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return repr(states)


def _list_read_files(path: Path) -> set[Path]:
    """Return the files that reading this path may open: those in it, captions beside it, and tables."""
    if path.suffix.lower() in TABLE_SUFFIXES:
        path = path.parent
    beside = set(path.parent.glob(f"{glob.escape(path.stem)}.*"))
    tables = {folder / name for folder in (path.parent, path.parent.parent) for name in TABLE_NAMES}
    if path.is_dir():
        return {*path.rglob("*"), *beside, *tables}
    is_sequence = not path.is_file() or path.suffix.lower() in PICTURE_SUFFIXES
    return {path, *(path.parent.glob("*") if is_sequence else beside), *tables}


def encode_captions(clip, captions: list[str]) -> list:
    """Return a CONDITIONING with one entry for each caption; equal captions are encoded once."""
    once = {caption: clip.encode_from_tokens_scheduled(clip.tokenize(caption)) for caption in set(captions)}
    return [entry for caption in captions for entry in once[caption]]


def _fill_mask(image: SubjectImage) -> torch.Tensor:
    return torch.zeros_like(image.pixels[:1]) if image.mask_px is None else image.mask_px


def make_folder_input(about: str):
    """Return the widget for the folder; `about` is its tooltip."""
    return io.String.Input("folder", default="", tooltip=about)


def make_caption_input(example: str):
    """Return the widget for one caption of everything."""
    return io.String.Input(
        "caption",
        default="",
        tooltip=f"Caption of everything, such as '{example}'. Empty, the captions in the folder are used.",
    )


def make_size_inputs(width: int, height: int) -> list:
    """Return the two widgets of the size."""
    return [
        io.Int.Input(
            side,
            default=default,
            min=64,
            max=1280,
            step=16,
            tooltip=f"{side.capitalize()} that everything is scaled and cropped to; give the training node "
            "the same. Raising it shows finer detail and needs more memory.",
        )
        for side, default in (("width", width), ("height", height))
    ]
