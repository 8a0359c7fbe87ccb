"""The SMRA Load Subject Folder and Load Motion Clip nodes: the authors' data layout, captions encoded."""

import logging
from pathlib import Path

import torch
from comfy_api.latest import io

from ..smra_core.data.motion_clip import FEWEST_FRAMES, read_motion_clip
from ..smra_core.data.subject_set import SubjectImage, read_subject_set
from ..smra_core.training.mora import MotionSettings
from ..smra_core.training.sura import SubjectSettings
from ..smra_core.wan.spec import check_size, latent_frames
from .host.images import as_image
from .host.widgets import advanced, show_text

log = logging.getLogger("smrabooth")

SUBJECT, MOTION = SubjectSettings(), MotionSettings()


class LoadSubjectFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRALoadSubjectFolder",
            display_name="SMRA Load Subject Folder",
            category="SMRABooth",
            description=(
                "Reads a subject's pictures, masks and captions: a folder with a metadata.csv as the authors "
                "have it, or plain pictures with masks/ and .txt captions beside them."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="WAN's text encoder, for the captions."),
                _folder("The folder; a relative one lies in ComfyUI's input folder."),
                _caption("A picture of sks dog"),
                *_size_inputs(SUBJECT.width, SUBJECT.height),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Mask.Output(display_name="masks", tooltip="Black all over where the folder has none."),
                io.Conditioning.Output(display_name="positive", tooltip="One prompt for each picture."),
                io.String.Output(display_name="captions", tooltip="The prompts in words, one a line."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, folder: str, caption: str, width: int, height: int) -> io.NodeOutput:
        check_size(width, height)
        found = read_subject_set(input_path(folder), (width, height), caption=caption.strip() or None)
        _tell(cls, f"{len(found.images)} pictures", found.notes)
        pictures = torch.stack([image.pixels for image in found.images])
        masks = torch.cat([_mask(image) for image in found.images])
        captions = [image.caption for image in found.images]
        return io.NodeOutput(as_image(pictures), masks, encoded(clip, captions), "\n".join(captions))

    @classmethod
    def fingerprint_inputs(cls, folder: str, **_) -> str:
        return files_state(folder)


class LoadMotionClip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRALoadMotionClip",
            display_name="SMRA Load Motion Clip",
            category="SMRABooth",
            description=(
                "Reads one clip and its caption: a video file, or a folder with a metadata.csv as the "
                "authors have it. The frames are cut to 4n+1, as WAN needs."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="WAN's text encoder, for the caption."),
                _folder("The video or its folder; a relative one lies in ComfyUI's input folder."),
                _caption("a person is vvt walking"),
                io.Int.Input(
                    "frame_count", default=MOTION.frames, min=FEWEST_FRAMES, max=257, step=4,
                    tooltip="Frames to read, 4n+1. Raising it shows more of the motion and takes memory.",
                ),
                advanced(io.Int.Input(
                    "start", default=0, min=0, max=100_000,
                    tooltip="The first frame's number. Raising it skips the clip's beginning.",
                )),
                advanced(io.Int.Input(
                    "stride", default=1, min=1, max=16,
                    tooltip="Raising it leaves frames out in between, so that the motion gets faster.",
                )),
                *_size_inputs(MOTION.width, MOTION.height),
            ],
            outputs=[
                io.Image.Output(display_name="frames"),
                io.Conditioning.Output(display_name="positive"),
                io.String.Output(display_name="captions", tooltip="The prompt in words."),
                io.Float.Output(display_name="fps", tooltip="Frames a second, after the stride."),
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
    ) -> io.NodeOutput:
        check_size(width, height)
        latent_frames(frame_count)
        words = caption.strip() or None
        found = read_motion_clip(input_path(folder), (width, height), frame_count, start, stride, words)
        _tell(cls, f"{len(found.frames)} frames of {found.name}", found.notes)
        positive = encoded(clip, [found.caption])
        return io.NodeOutput(as_image(found.frames), positive, found.caption, found.fps)

    @classmethod
    def fingerprint_inputs(cls, folder: str, **_) -> str:
        return files_state(folder)


def input_path(text: str) -> Path:
    """A path as an artist gives it. ValueError for an empty one."""
    import folder_paths

    cleaned = text.strip().strip('"')
    if not cleaned:
        raise ValueError("No folder is given. Write its path, such as input/my_dog.")
    path = Path(cleaned).expanduser()
    return path if path.is_absolute() else Path(folder_paths.get_input_directory()) / path


def files_state(folder: str) -> str:
    """What tells that files changed, so that the host reads them again: names, sizes and times."""
    path = input_path(folder)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    known = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return repr(known)


def encoded(clip, captions: list[str]) -> list:
    """CONDITIONING with one entry for each caption."""
    once = {caption: clip.encode_from_tokens_scheduled(clip.tokenize(caption)) for caption in set(captions)}
    return [entry for caption in captions for entry in once[caption]]


def _mask(image: SubjectImage):
    return torch.zeros_like(image.pixels[:1]) if image.mask_px is None else image.mask_px


def _tell(node: type, what: str, notes: list[str]) -> None:
    for note in notes:
        log.info(note)
    show_text(node, "\n".join([what, *notes]))


def _folder(about: str):
    return io.String.Input("folder", default="", tooltip=about)


def _caption(example: str):
    return io.String.Input(
        "caption",
        default="",
        tooltip=f"For all, such as '{example}'; empty takes the captions in the folder.",
    )


def _size_inputs(width: int, height: int) -> list:
    tip = "Pictures are scaled and cropped to it; give the training node the same. Raising it takes memory."
    widths = io.Int.Input("width", default=width, min=64, max=1280, step=16, tooltip=tip)
    heights = io.Int.Input("height", default=height, min=64, max=1280, step=16, tooltip="As width.")
    return [advanced(widths), advanced(heights)]
