"""The SMRA Train Motion LoRA node: how something moves, learned from one clip of it."""

from dataclasses import replace
from pathlib import Path

import torch
from comfy_api.latest import io
from torch import Tensor

from ..smra_core.data.motion_clip import FEWEST_FRAMES, MotionClip
from ..smra_core.training.decode_choice import DecodeChoice, choose_decode
from ..smra_core.training.mora import DECODE_MODES, MotionSettings
from ..smra_core.training.motion import train_motion
from ..smra_core.training.trainer import TrainSettings
from ..smra_core.wan.spec import check_size, latent_frames, latent_shape, trim_frames
from .host.backend import ComfyBackend
from .host.conditioning import captions_and_contexts
from .host.denoiser import training_dtype
from .host.images import crop_images
from .host.inference_tensors import as_normal_tensor
from .host.model_folders import TINY_DECODER
from .host.versions import trainable_memory
from .host.widgets import advanced
from .host.wire_types import SeaRaftType
from .training.forecast import motion_forecast
from .training.inputs import (
    RANK,
    SIZE,
    VELOCITY,
    advanced_inputs,
    front_inputs,
    outputs,
    plans,
    train_settings,
)
from .training.outputs import Outputs, file_name, shown
from .training.run import run_training_node, show_forecast
from .training.settings_widgets import Widget, choices, chosen, widgets

DEFAULTS, TRAIN_DEFAULTS = MotionSettings(), TrainSettings(steps=400)
REMEDY = (
    "Choose decode 'tiny' with a tiny decoder's file, or 'windowed' with window 3 or less; or lower "
    "frame_count, then width and height, or batch_size."
)
NO_TINY = "none"
FRAMES = Widget(
    "frames",
    "Frames from the start of the clip, 4n+1. Raising it shows more of the motion and takes memory and time.",
    dict(min=FEWEST_FRAMES, max=257, step=4),
    id="frame_count",
)
ROWS = (
    *SIZE,
    Widget(
        "mora_weight",
        "How strongly the optical flow is held to the clip's. Raising it follows the motion closer; 0 leaves "
        "it out, and SEA-RAFT and the decoder with it.",
        dict(min=0.0, max=100.0, step=0.1),
    ),
    Widget(
        "decode",
        "How a step looks at the video: 'windowed' at a part of it, drawn anew each time; 'exact' at all of "
        "it, as in the paper, for twice the time and more memory; 'exact-low-memory' the same, slower; "
        "'tiny' at all of it through a small decoder, for small cards. 'auto' takes 'windowed', or 'tiny' "
        "where memory asks for it.",
        options=choices(DECODE_MODES),
    ),
    Widget(
        "window",
        "Latents (4 frames each) that a 'windowed' step looks at. Raising it from 3 shows longer motions at "
        "once, and takes memory and time.",
        dict(min=1, max=64),
    ),
    Widget(
        "context",
        "Latents decoded before a window, so that the decoder knows what came before. Raising it from 2 "
        "comes nearer to 'exact', and takes memory and time.",
        dict(min=1, max=64),
    ),
    Widget(
        "debias",
        "Take the look that all frames share out of the loss, so that motion is learned, not appearance.",
    ),
    Widget(
        "flow_weight",
        "'clean' counts the flow less at high noise, where the predicted video is a blur.",
        options=choices(("none", "clean")),
    ),
    *VELOCITY,
    Widget(
        "plan",
        "Which layers learn. 'motion' is the paper's: it leaves room for a subject LoRA.",
        options=plans(without="subject"),
        id="layers",
    ),
)


class TrainMotionLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRATrainMotionLoRA",
            display_name="SMRA Train Motion LoRA",
            category="SMRABooth",
            description=(
                "Trains a LoRA on one clip of a motion, so that WAN can give it to any subject. The flow of "
                "what the model makes is held to the clip's. A canceled run goes on where it stopped."
            ),
            inputs=[
                io.Model.Input("model", tooltip="Wan2.1-T2V, 1.3B or 14B, of any precision."),
                io.Vae.Input("vae", tooltip="WAN 2.1's VAE."),
                io.Image.Input("frames", tooltip="The clip, frame by frame."),
                io.Conditioning.Input(
                    "positive", tooltip="One prompt that names the motion, such as 'a person is vvt walking'."
                ),
                SeaRaftType.Input(
                    "sea_raft", optional=True,
                    tooltip="The net that measures the motion. Needed unless mora_weight is 0.",
                ),
                *front_inputs("motion", DEFAULTS, TRAIN_DEFAULTS),
                *widgets(DEFAULTS, [FRAMES], fold=False),
                *advanced_inputs(DEFAULTS, ROWS, TRAIN_DEFAULTS),
                advanced(io.Combo.Input(
                    "tiny_decoder", options=[NO_TINY, *TINY_DECODER.found()], default=NO_TINY, optional=True,
                    tooltip=f"For decode 'tiny', which 'auto' may then choose. {TINY_DECODER.tooltip}",
                )),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae, frames, positive, sea_raft=None, captions="", **values) -> io.NodeOutput:
        # Whatever takes part in autograd must be made outside of the host's inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            clip = as_normal_tensor(frames)
            return shown(_trained(cls, model, vae, clip, positive, sea_raft, captions, values))


def _trained(
    node, model, vae, frames: Tensor, positive, sea_raft: Path | None, captions: str, values: dict
) -> Outputs:
    settings, train = motion_settings(values), train_settings(TRAIN_DEFAULTS, values)
    name, tiny = file_name(values["name"]), _tiny_file(values)
    (caption,), contexts = captions_and_contexts(positive, 1, captions)
    backend = ComfyBackend(model, vae, contexts)
    clip = motion_clip(frames, settings, caption)
    settings = replace(settings, frames=len(clip.frames))
    choice = _choice(backend, settings, tiny)
    shape = latent_shape(settings.frames, settings.width, settings.height)
    dtype = training_dtype(backend.device)
    show_forecast(
        node, backend, motion_forecast(backend.spec, settings, train, shape, choice, dtype), clip.notes
    )

    def run(name, progress):
        return train_motion(backend, clip, sea_raft, settings, train, name, progress, tiny, choice)

    return run_training_node(node, backend, values, name, contexts[caption], shape, run, REMEDY)


def motion_settings(values: dict) -> MotionSettings:
    """Of the node's inputs. ValueError for sizes that WAN does not have."""
    settings = chosen(DEFAULTS, (RANK, FRAMES, *ROWS), values)
    check_size(settings.width, settings.height)
    latent_frames(settings.frames)
    return settings


def _tiny_file(values: dict) -> Path | None:
    choice = values.get("tiny_decoder", NO_TINY)
    return None if choice == NO_TINY else TINY_DECODER.path(choice)


def _choice(backend: ComfyBackend, settings: MotionSettings, tiny: Path | None) -> DecodeChoice:
    # By what the card has, not by what is free now: queued again after another workflow, it is the same run.
    free = trainable_memory(backend.device)
    return choose_decode(settings, backend.spec, backend.device, tiny, free)


def motion_clip(frames: Tensor, settings: MotionSettings, caption: str) -> MotionClip:
    """The first frames of an IMAGE batch as a clip of 4n+1. ValueError when they are too few."""
    if len(frames) < FEWEST_FRAMES:
        raise ValueError(
            f"The clip has {len(frames)} frames; a motion needs at least {FEWEST_FRAMES}. Load more of it, "
            "49 is the paper's number."
        )
    kept = min(settings.frames, trim_frames(len(frames)))
    pixels, notes = crop_images(frames[:kept], (settings.width, settings.height))
    if kept < settings.frames:
        notes.append(f"{settings.frames} frames were asked for, {len(frames)} are there, {kept} are used")
    return MotionClip("clip", Path("clip"), pixels, caption, 16.0, notes)
