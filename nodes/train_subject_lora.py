"""The SMRA Train Subject LoRA node: learn what a subject looks like from a few pictures of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from comfy_api.latest import io
from torch import Tensor

from ..smra_core.data.subject_set import describe_new_masks
from ..smra_core.storage.file_name import make_file_name
from ..smra_core.training.gradient_share import SHARE
from ..smra_core.training.model_fit import check_fit
from ..smra_core.training.subject import find_missing_masks, train_subject
from ..smra_core.training.sura import SubjectSettings
from ..smra_core.training.train_settings import SUBJECT_TRAIN, TrainSettings
from .host.backend import ComfyBackend
from .host.conditioning import match_captions, match_options
from .host.denoiser import choose_training_dtype
from .host.inference_tensors import as_normal_tensor
from .host.model_patches import check_conditioning
from .host.picture_strip import show_masked_pictures
from .host.widgets import log_notes
from .host.wire_types import DinoV2Type, LossOptions, SamType, TrainingOptions
from .training.forecast import estimate_subject_run
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
from .training.outputs import make_node_output
from .training.progress import GraphProgress, Preview
from .training.run import run_training, show_forecast
from .training.settings_widgets import Widget, make_widgets, update_settings
from .training.subject_samples import SubjectSample, count_samples, make_subject_samples

DEFAULTS, TRAIN_DEFAULTS = SubjectSettings(), SUBJECT_TRAIN
MEMORY_ADVICE = (
    "Lower batch_size in SMRA Training Options, or lower width and height, or choose a smaller DINOv2."
)
LISTS = ("images", "positive", "masks", "captions")
"""Inputs that are lists where there are several batches of pictures, or several clips."""
ROWS = (*SIZE, Widget("sura_weight", dict(min=0.0, max=10.0, step=0.01)))
NEWER_ROWS = (Widget("sura_share", dict(min=SHARE.least, max=SHARE.most, step=0.05), optional=True),)
"""Widgets after all others, so that the values of saved workflows keep their places."""


class TrainSubjectLoRA(io.ComfyNode):
    """Node that trains a subject LoRA on pictures of the graph."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRATrainSubjectLoRA",
            display_name="SMRA Train Subject LoRA",
            category="SMRABooth",
            description=(
                "Trains a LoRA on 3 to 10 pictures of one subject, so that WAN can put it into any scene. "
                "It learns only inside the masks. Queue the graph again to continue a canceled run."
            ),
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Vae.Input("vae", tooltip=VAE_TOOLTIP),
                io.Image.Input(
                    "images",
                    tooltip="Pictures of the subject. More views give a more reliable LoRA. A list of them, "
                    "such as SMRA Load Subject Clips makes of a folder, may hold several clips (as_clip).",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="One prompt for all, such as 'A picture of sks dog', or one for each picture or "
                    "clip.",
                ),
                io.Mask.Input(
                    "masks", optional=True,
                    tooltip="White where the subject is, one for each picture. Without them SAM finds the "
                    "subject. A list has a MASK batch for each IMAGE batch.",
                ),
                DinoV2Type.Input(
                    "dinov2", optional=True,
                    tooltip="DINOv2, the model whose features the subject LoRA is aligned with. Needed "
                    "unless sura_weight is 0.",
                ),
                SamType.Input(
                    "sam", optional=True,
                    tooltip="SAM, which finds the subject at the center of pictures without a mask.",
                ),
                *make_option_inputs(),
                *make_first_inputs("subject", DEFAULTS, TRAIN_DEFAULTS),
                *make_widgets(DEFAULTS, ROWS),
                make_preview_input(),
                io.Boolean.Input(
                    "as_clip", default=False, optional=True,
                    tooltip="Take images as the frames of one clip of the subject, in order, with a mask for "
                    "each frame (such as SAM 3's track gives) or one for all. Of a list each batch is a clip "
                    "(a picture, where it holds one image). Off, each image is a sample of its own. A clip "
                    "shows how the subject looks while it moves, and needs more memory.",
                ),
                *make_widgets(DEFAULTS, NEWER_ROWS),
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
            check_fit(given.settings, backend.spec)
            samples, notes = make_samples(backend, given)
            shapes = list_latent_shapes(backend.spec.latents, samples)
            backend.read_conditions(given.captions, given.options, shapes)
            aligned = given.settings.align_block if given.settings.sura_weight else None
            backend.check_training_step(given.settings.plan, given.captions[0], shapes[0], aligned)
            show_subject_forecast(cls, backend, given, samples, notes)
            unmasked, samples = samples, find_missing_masks(samples, given.sam, backend)
            log_notes(describe_new_masks(unmasked, samples))
            show_masked_pictures(samples)
            context, seed = given.contexts[given.captions[0]], given.train.seed
            preview = Preview(backend, context, shapes[0], given.preview_every, seed)
            progress = GraphProgress(cls, preview)
            trained = run_training(
                cls,
                backend,
                lambda: train_subject(
                    backend, samples, given.dinov2, given.settings, given.train, given.name, progress
                ),
                MEMORY_ADVICE,
            )
            return make_node_output(trained)


@dataclass(frozen=True)
class SubjectInputs:
    """Inputs of the node, in the types of the core."""

    model: object
    """ComfyUI's MODEL."""
    vae: object
    """ComfyUI's VAE."""
    images: list[Tensor]
    """Batches of pictures `B H W 3` in [0, 1], normal tensors."""
    masks: list[Tensor]
    """Masks `B H W` in [0, 1], normal tensors: none, or a batch for each of the images'."""
    as_clip: bool
    """Whether each batch of several images is a clip."""
    own_sizes: bool
    """Whether each batch keeps its own shape."""
    captions: list[str]
    """Caption of each picture or clip."""
    contexts: dict[str, Tensor]
    """Text context `T 4096` of each caption."""
    options: list[dict]
    """What stands beside the prompt of each picture or clip in its CONDITIONING."""
    dinov2: Path | None
    sam: Path | None
    settings: SubjectSettings
    train: TrainSettings
    name: str
    preview_every: int


def parse_inputs(
    *,
    model,
    vae,
    images: list[Tensor],
    positive: list,
    masks: Sequence[Tensor] = (),
    dinov2: Path | None = None,
    sam: Path | None = None,
    captions: Sequence[str] = (),
    training_options: TrainingOptions | None = None,
    loss_options: LossOptions | None = None,
    as_clip: bool = False,
    **widgets,
) -> SubjectInputs:
    """Return the node's inputs in the types of the core. Raises ValueError for values that cannot work.

    Images, prompts, masks and captions are lists. Call outside of inference mode.
    """
    training, losses = training_options or TrainingOptions(), loss_options or LossOptions()
    subject_plan, _ = training.plans
    settings = replace(losses.subject, plan=subject_plan, **training.loss_settings)
    settings = update_settings(settings, (RANK, *ROWS, *NEWER_ROWS), widgets)
    train = update_settings(training.train, [STEPS], widgets)
    name = make_file_name(widgets["name"])
    prompts = [prompt for conditioning in positive for prompt in conditioning]
    check_conditioning(prompts)
    count = count_samples(images, as_clip)
    names, contexts = match_captions(prompts, count, "\n".join(filter(None, captions)))
    return SubjectInputs(
        model, vae, [as_normal_tensor(batch) for batch in images],
        [as_normal_tensor(mask) for mask in masks if mask is not None], as_clip, training.own_sizes, names,
        contexts, match_options(prompts, count), dinov2, sam, settings, train, name, widgets["preview_every"],
    )  # fmt: skip


def make_samples(backend: ComfyBackend, given: SubjectInputs) -> tuple[list[SubjectSample], list[str]]:
    """Return the pictures and clips with masks at the training size, and notes on what the crop cut off."""
    settings, multiple = given.settings, backend.spec.latents.token_pixels
    return make_subject_samples(
        given.images, given.masks, given.captions, (settings.width, settings.height), given.as_clip,
        multiple if given.own_sizes else None,
    )  # fmt: skip


def show_subject_forecast(
    node: type,
    backend: ComfyBackend,
    given: SubjectInputs,
    samples: Sequence[SubjectSample],
    notes: Sequence[str],
) -> None:
    """Show on the node what the run will take."""
    dtype = choose_training_dtype(backend.device)
    lengths = [len(sample.frames) for sample in samples]
    forecast = estimate_subject_run(backend.spec, given.settings, given.train, lengths, dtype)
    log_notes(notes)
    show_forecast(node, backend, forecast, notes)
