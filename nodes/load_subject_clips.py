"""The SMRA Load Subject Clips node: read a subject's clips and pictures, with their masks, from a folder."""

from comfy_api.latest import io

from ..smra_core.data.subject_clip import CLIP_FRAMES
from ..smra_core.data.subject_set import read_subject_set
from ..smra_core.data.video import Selection
from ..smra_core.training.sura import SubjectSettings
from ..smra_core.wan.spec import latent_frames
from .data.file_states import describe_files
from .data.inputs import (
    FRAME_RATES,
    IN_THE_INPUT_FOLDER,
    make_caption_input,
    make_folder_input,
    make_frame_rate_input,
    make_own_sizes_input,
    make_size_inputs,
)
from .data.outputs import encode_captions, get_masks, make_prompt_outputs
from .host.images import as_image
from .host.input_folder import resolve_input
from .host.widgets import show_notes

DEFAULTS = SubjectSettings()


class LoadSubjectClips(io.ComfyNode):
    """Node that reads clips and pictures of one subject as lists."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRALoadSubjectClips",
            display_name="SMRA Load Subject Clips",
            category="SMRABooth",
            description=(
                "Reads the videos of one subject with the masks of their frames from a folder, and its "
                "pictures, too. Each clip and each picture is an item of a list: turn as_clip on in SMRA "
                "Train Subject LoRA."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="WAN's text encoder, for the captions."),
                make_folder_input(IN_THE_INPUT_FOLDER),
                make_caption_input("A video of sks dog"),
                io.Int.Input(
                    "frame_count", default=CLIP_FRAMES, min=1, max=257, step=4,
                    tooltip="Most frames to read of each video, 4n+1. Raising it shows the subject from more "
                    "sides and needs more memory.",
                ),
                *make_size_inputs(DEFAULTS.width, DEFAULTS.height),
                make_frame_rate_input(
                    "Frame rate that each video is brought to by the times of its frames. WAN's "
                    "videos have 16 frames per second and TI2V-5B's 24. 'as they are' takes every frame."
                ),
                make_own_sizes_input("clip and picture"),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="The frames of each clip, and each picture, cropped to width and height.",
                ),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="The masks of each item; black all over for a picture without one.",
                ),
                *make_prompt_outputs("item"),
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
        width: int,
        height: int,
        frame_rate: str,
        own_sizes: bool,
    ) -> io.NodeOutput:
        fps, latents = FRAME_RATES[frame_rate]
        latents.check_size(width, height)
        latent_frames(frame_count)
        found = read_subject_set(
            resolve_input(folder), (width, height), caption=caption.strip() or None,
            clips=Selection(frame_count, 0, 1, fps, latents.fps),
            own_multiple=latents.token_pixels if own_sizes else None,
        )  # fmt: skip
        show_notes(cls, f"clips: {len(found.clips)}, pictures: {len(found.images)}", found.notes)
        items = [*found.images, *found.clips]
        return io.NodeOutput(
            [as_image(item.frames) for item in items],
            [get_masks(item) for item in items],
            [encode_captions(clip, [item.caption]) for item in items],
            [item.caption for item in items],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **_) -> str:
        return describe_files(folder)
