"""The SMRA Load Motion Clip node: read one clip of a motion or several, and their captions."""

from comfy_api.latest import io

from ..smra_core.data.motion_clip import FEWEST_FRAMES
from ..smra_core.data.motion_set import read_motion_set
from ..smra_core.data.video import Selection
from ..smra_core.training.motion_settings import MotionSettings
from ..smra_core.wan.spec import latent_frames
from .data.file_states import describe_files
from .data.inputs import (
    FRAME_RATES,
    USUAL_RATE,
    make_caption_input,
    make_folder_input,
    make_frame_rate_input,
    make_own_sizes_input,
    make_size_inputs,
)
from .data.outputs import encode_captions, make_prompt_outputs
from .host.images import as_image
from .host.input_folder import resolve_input
from .host.widgets import show_notes

DEFAULTS = MotionSettings()


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
                    "frame_count", default=DEFAULTS.frames, min=FEWEST_FRAMES, max=257, step=4,
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
                *make_size_inputs(DEFAULTS.width, DEFAULTS.height),
                make_frame_rate_input(
                    "Frame rate that the clip is brought to by the times of its frames. WAN's videos "
                    "have 16 frames per second and TI2V-5B's 24; at the model's rate the motion keeps its "
                    "speed. 'as they are' takes every frame, which makes the motion of a 60 fps clip 3.75 "
                    "times slower.",
                    optional=True,
                ),
                make_own_sizes_input("clip", optional=True),
            ],
            outputs=[
                io.Image.Output(
                    display_name="frames",
                    is_output_list=True,
                    tooltip="The clip, cropped to width and height. Of a folder it is a list of all clips.",
                ),
                *make_prompt_outputs("clip"),
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
        frame_rate: str = USUAL_RATE,
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
