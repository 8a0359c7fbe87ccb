"""The SMRA Train Motion LoRA node: how something moves, learnt from one clip of it."""

from dataclasses import replace
from pathlib import Path

import torch
from comfy_api.latest import io
from torch import Tensor

from ..smra_core.mora import MotionSettings
from ..smra_core.motion_clip import FEWEST_FRAMES, MotionClip
from ..smra_core.motion_training import train_motion
from ..smra_core.sparse import PLANS
from ..smra_core.wan import LATENT_CHANNELS, SPATIAL_STRIDE, check_size, latent_frames, trim_frames
from .graph_images import framed
from .graph_place import GraphPlace
from .graph_progress import GraphProgress, Preview
from .graph_text import contexts_of
from .host_wan import training_dtype
from .inference_tensors import ordinary
from .load_teachers import SeaRaftType
from .node_text import advanced, show_text
from .preflight import Estimate, report, weights_bytes
from .trained_lora import Outputs, file_name, published, run_to_the_end, shown
from .training_inputs import advanced_inputs, front_inputs, outputs, train_settings

DEFAULTS = MotionSettings()
REMEDY = "Lower window (3 is enough), or frames, or width and height, or batch_size."
_STEPS = 400
_PLANS = [name for name in PLANS if not name.startswith("subject")]


class TrainMotionLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRATrainMotionLoRA",
            display_name="SMRA Train Motion LoRA",
            category="SMRABooth",
            description=(
                "Trains a LoRA on one clip of a motion, so that WAN can give it to any subject. The flow of "
                "what the model makes is held to the clip's. A cancelled run goes on where it stopped."
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
                *front_inputs("motion", _STEPS, DEFAULTS.rank),
                io.Int.Input(
                    "frame_count", default=DEFAULTS.frames, min=FEWEST_FRAMES, max=257,
                    step=4,
                    tooltip="Frames from the start of the clip, 4n+1. Raising it shows more of the motion, "
                    "and takes memory and time.",
                ),
                *_method_inputs(),
                *advanced_inputs(),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae, frames, positive, sea_raft=None, captions="", **values) -> io.NodeOutput:
        # Whatever takes part in autograd must be made outside of the host's inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            clip = ordinary(frames)
            return shown(_trained(cls, model, vae, clip, positive, sea_raft, captions, values))


def _method_inputs() -> list:
    inputs = [
        io.Int.Input(
            "width", default=DEFAULTS.width, min=64, max=1280, step=16,
            tooltip="Frames are scaled and cropped to it. Raising it takes memory and time.",
        ),
        io.Int.Input(
            "height", default=DEFAULTS.height, min=64, max=1280, step=16,
            tooltip="As width.",
        ),
        io.Float.Input(
            "mora_weight", default=DEFAULTS.mora_weight, min=0.0, max=100.0, step=0.1,
            tooltip="How strongly the optical flow is held to the clip's. Raising it follows the motion "
            "closer; 0 leaves it out, and SEA-RAFT and the decoder with it.",
        ),
        io.Int.Input(
            "window", default=DEFAULTS.window, min=0, max=64,
            tooltip="Latents (4 frames each) that a step's flow looks at; 0 is the whole clip, as in the "
            "paper. Raising it from 3 takes memory and time.",
        ),
        io.Boolean.Input(
            "debias", default=DEFAULTS.debias,
            tooltip="Take the look that all frames share out of the loss, so that motion is learnt, not "
            "appearance.",
        ),
        io.Combo.Input(
            "flow_weight", options=["none", "clean"], default=DEFAULTS.flow_weight,
            tooltip="'clean' counts the flow less at high noise, where the predicted video is a blur.",
        ),
        io.Combo.Input(
            "layers", options=_PLANS, default="motion",
            tooltip="Which layers learn. 'motion' is the paper's: it leaves room for a subject LoRA.",
        ),
    ]  # fmt: skip
    return [advanced(item) for item in inputs]


def _trained(
    node, model, vae, frames: Tensor, positive, sea_raft: Path | None, captions: str, values: dict
) -> Outputs:
    settings, train = _settings(values), train_settings(values)
    name = file_name(values["name"])
    names, contexts = contexts_of(positive, 1, captions)
    place = GraphPlace(model, vae, contexts)
    clip = motion_clip(frames, settings, names[0])
    shape = (
        LATENT_CHANNELS,
        latent_frames(len(clip.frames)),
        settings.height // SPATIAL_STRIDE,
        settings.width // SPATIAL_STRIDE,
    )
    _tell(node, place, settings, train, shape, clip)
    preview = Preview(place, contexts[names[0]], shape, values["preview_every"], train.seed)
    progress = GraphProgress(node, preview)
    return published(
        run_to_the_end(lambda: train_motion(place, clip, sea_raft, settings, train, name, progress), REMEDY),
        name,
    )


def _settings(values: dict) -> MotionSettings:
    check_size(values["width"], values["height"])
    latent_frames(values["frame_count"])
    same = ("rank", "width", "height", "mora_weight", "window", "debias", "flow_weight")
    chosen = {key: values[key] for key in same}
    return replace(DEFAULTS, plan=PLANS[values["layers"]], frames=values["frame_count"], **chosen)


def motion_clip(frames: Tensor, settings: MotionSettings, caption: str) -> MotionClip:
    """The first frames of an IMAGE batch as a clip of 4n+1. ValueError when they are too few."""
    if len(frames) < FEWEST_FRAMES:
        raise ValueError(
            f"The clip has {len(frames)} frames; a motion needs at least {FEWEST_FRAMES}. Load more of it, "
            "49 is the paper's number."
        )
    kept = min(settings.frames, trim_frames(len(frames)))
    pixels, notes = framed(frames[:kept], (settings.width, settings.height))
    if kept < settings.frames:
        notes.append(f"{settings.frames} frames were asked for, {len(frames)} are there, {kept} are used")
    return MotionClip("clip", Path("clip"), pixels, caption, 16.0, notes)


def _tell(node, place: GraphPlace, settings, train, shape, clip: MotionClip) -> None:
    dtype = training_dtype(place.device)
    estimate = Estimate(place.spec(), settings.plan, settings.rank, train, torch.Size(shape))
    aligned = settings.width * settings.height if settings.mora_weight else 0
    place.memory_required = estimate.memory(dtype, aligned)
    what = f"{len(clip.frames)} frames of {settings.width}x{settings.height}"
    seconds = estimate.seconds(place.device, dtype)
    # Decoder and flow net come on top of the DiT's time.
    line = report(estimate, what, place.memory_required, weights_bytes(place.model), seconds, aligned > 0)
    show_text(node, "\n".join([line, *clip.notes]))
