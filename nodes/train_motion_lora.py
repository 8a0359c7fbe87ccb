"""The SMRA Train Motion LoRA node: learn how something moves from one clip of it or several."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from comfy_api.latest import io
from torch import Tensor

from ..smra_core.data.motion_clip import FEWEST_FRAMES, MotionClip
from ..smra_core.storage.file_name import make_file_name
from ..smra_core.training.decode_choice import choose_decode
from ..smra_core.training.decode_memory import DecodeChoice
from ..smra_core.training.motion import train_motion
from ..smra_core.training.motion_settings import DECODE_MODES, MotionSettings
from ..smra_core.training.train_settings import MOTION_TRAIN, TrainSettings
from .host.backend import ComfyBackend
from .host.conditioning import match_captions, match_options
from .host.denoiser import choose_training_dtype
from .host.inference_tensors import as_normal_tensor
from .host.model_patches import check_conditioning
from .host.versions import measure_trainable_memory
from .host.widgets import log_notes
from .host.wire_types import LossOptions, SeaRaftType, TrainingOptions
from .training.forecast import estimate_motion_run
from .training.inputs import (
    MODEL_TOOLTIP,
    RANK,
    SIZE,
    STEPS,
    VAE_TOOLTIP,
    make_first_inputs,
    make_option_inputs,
    make_outputs,
    make_preview_input,
)
from .training.latent_shapes import list_latent_shapes
from .training.list_inputs import take_single_values
from .training.motion_clips import list_notes, make_motion_clips
from .training.outputs import make_node_output
from .training.progress import GraphProgress, Preview
from .training.run import run_training, show_forecast
from .training.settings_widgets import Widget, make_widgets, update_settings

DEFAULTS, TRAIN_DEFAULTS = MotionSettings(), MOTION_TRAIN
MEMORY_ADVICE = (
    "Choose decode 'exact-low-memory', or 'tiny' with its file in SMRA Loss Options; or lower frame_count, "
    "then width and height, or batch_size in SMRA Training Options."
)
LISTS = ("frames", "positive", "exclude", "captions")
"""Inputs that are lists where there are several clips."""
ROWS = (
    *SIZE,
    Widget("frames", dict(min=FEWEST_FRAMES, max=257, step=4), id="frame_count"),
    Widget("mora_weight", dict(min=0.0, max=100.0, step=0.1)),
    Widget("decode", options=DECODE_MODES, note="SMRA Loss Options takes the small decoder's file."),
)


class TrainMotionLoRA(io.ComfyNode):
    """Node that trains a motion LoRA on a clip of the graph."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRATrainMotionLoRA",
            display_name="SMRA Train Motion LoRA",
            category="SMRABooth",
            description=(
                "Trains a LoRA on one clip of a motion or several, so that WAN can give it to any subject. "
                "The optical flow of the video that the model predicts is made to match the clip's. Queue "
                "the graph again to continue a canceled run."
            ),
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Vae.Input("vae", tooltip=VAE_TOOLTIP),
                io.Image.Input(
                    "frames",
                    tooltip="The clip, frame by frame. A list, such as SMRA Load Motion Clip makes of a "
                    "folder, is several clips of one motion; more of them keep out what only one shows.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="One prompt that names the motion, such as 'a person is vvt walking', or one for "
                    "each clip. For an image-to-video model it comes through WanImageToVideo with the clip's "
                    "first frame.",
                ),
                SeaRaftType.Input(
                    "sea_raft", optional=True,
                    tooltip="SEA-RAFT, the model that measures the optical flow. Needed unless mora_weight "
                    "is 0.",
                ),
                *make_option_inputs(),
                io.Mask.Input(
                    "exclude", optional=True,
                    tooltip="White where the clip does not count, such as a logo or a second person: one "
                    "mask for all frames, or one for each. A list has a MASK batch for each clip.",
                ),
                *make_first_inputs("motion", DEFAULTS, TRAIN_DEFAULTS),
                *make_widgets(DEFAULTS, ROWS),
                make_preview_input(),
            ],
            outputs=make_outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            is_input_list=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        # Whatever takes part in autograd must be made outside of ComfyUI's inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            given = parse_inputs(**take_single_values(inputs, LISTS))
            backend = ComfyBackend(given.model, given.vae, given.contexts)
            clips = make_clips(backend, given)
            longest = max(len(clip.frames) for clip in clips)
            given = replace(given, settings=replace(given.settings, frames=longest))
            shapes = list_latent_shapes(backend.spec.latents, clips)
            backend.read_conditions(given.captions, given.options, shapes)
            backend.check_training_step(given.settings.plan, given.captions[0], shapes[0])
            choice = choose_node_decode(backend, given)
            show_motion_forecast(cls, backend, given, choice, len(clips), list_notes(clips))
            context, seed = given.contexts[given.captions[0]], given.train.seed
            preview = Preview(backend, context, shapes[0], given.preview_every, seed)
            progress = GraphProgress(cls, preview)
            trained = run_training(
                cls,
                backend,
                lambda: train_motion(
                    backend, clips, given.sea_raft, given.settings, given.train, given.name, progress,
                    given.tiny_decoder, choice,
                ),
                MEMORY_ADVICE,
            )  # fmt: skip
            return make_node_output(trained)


@dataclass(frozen=True)
class MotionInputs:
    """Inputs of the node, in the types of the core."""

    model: object
    """ComfyUI's MODEL."""
    vae: object
    """ComfyUI's VAE."""
    frames: list[Tensor]
    """Clips `F H W 3` in [0, 1], normal tensors."""
    exclude: list[Tensor]
    """Masks `F H W` in [0, 1], 1 where a clip does not count: none, one for all clips, or one for each."""
    own_sizes: bool
    """Whether each clip keeps its own shape."""
    captions: list[str]
    """Caption of each clip."""
    contexts: dict[str, Tensor]
    """Text context `T 4096` of each caption."""
    options: list[dict]
    """What stands beside the prompt of each clip in its CONDITIONING."""
    sea_raft: Path | None
    tiny_decoder: Path | None
    settings: MotionSettings
    train: TrainSettings
    name: str
    preview_every: int


def parse_inputs(
    *,
    model,
    vae,
    frames: list[Tensor],
    positive: list,
    exclude: Sequence[Tensor] = (),
    sea_raft: Path | None = None,
    captions: Sequence[str] = (),
    training_options: TrainingOptions | None = None,
    loss_options: LossOptions | None = None,
    **widgets,
) -> MotionInputs:
    """Return the node's inputs in the types of the core. Raises ValueError for values that cannot work.

    Frames, prompts, masks and captions are lists. Call outside of inference mode.
    """
    training, losses = training_options or TrainingOptions(), loss_options or LossOptions()
    settings = parse_settings(widgets, training, losses)
    train = update_settings(training.train, [STEPS], widgets)
    name = make_file_name(widgets["name"])
    prompts = [prompt for conditioning in positive for prompt in conditioning]
    check_conditioning(prompts)
    names, contexts = match_captions(prompts, len(frames), "\n".join(filter(None, captions)))
    options = match_options(prompts, len(frames))
    return MotionInputs(
        model, vae, [as_normal_tensor(clip) for clip in frames], [as_normal_tensor(mask) for mask in exclude],
        training.own_sizes, names, contexts, options, sea_raft, losses.tiny_decoder,
        settings, train, name, widgets["preview_every"],
    )  # fmt: skip


def parse_settings(widgets: dict, training: TrainingOptions, losses: LossOptions) -> MotionSettings:
    """Return the settings of the motion loss. Raises ValueError as the dataclass does."""
    _, motion_plan = training.plans
    settings = replace(
        losses.motion, plan=motion_plan, color_copies=training.color_copies, **training.loss_settings
    )
    return update_settings(settings, (RANK, *ROWS), widgets)


def make_clips(backend: ComfyBackend, given: MotionInputs) -> list[MotionClip]:
    """Return the clips at the training size. Raises ValueError for clips and masks that cannot work."""
    settings, multiple = given.settings, backend.spec.latents.token_pixels
    return make_motion_clips(
        given.frames, given.exclude, given.captions, settings.frames, (settings.width, settings.height),
        multiple if given.own_sizes else None,
    )  # fmt: skip


def choose_node_decode(backend: ComfyBackend, given: MotionInputs) -> DecodeChoice:
    """Return how the run decodes."""
    # By what the card has, not by what is free now: queued again after another workflow, it is the same run.
    free = measure_trainable_memory(backend.device)
    return choose_decode(
        given.settings, backend.spec, backend.device, given.tiny_decoder, free, backend.weights
    )


def show_motion_forecast(
    node: type,
    backend: ComfyBackend,
    given: MotionInputs,
    choice: DecodeChoice,
    count: int,
    notes: Sequence[str],
) -> None:
    """Show on the node what the run will take."""
    dtype = choose_training_dtype(backend.device)
    forecast = estimate_motion_run(backend.spec, given.settings, given.train, choice, dtype, count)
    log_notes(notes)
    show_forecast(node, backend, forecast, notes)
