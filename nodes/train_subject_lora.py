"""The SMRA Train Subject LoRA node: learn what a subject looks like from a few pictures of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from comfy_api.latest import io
from torch import Tensor

from ..smra_core.data.crop import Size, keep_shape
from ..smra_core.data.mask_check import may_be_mask
from ..smra_core.data.pixel_check import check_none_is_black, split_alpha
from ..smra_core.data.subject_clip import SubjectClip
from ..smra_core.data.subject_set import SubjectImage, describe_new_masks
from ..smra_core.storage.file_name import make_file_name
from ..smra_core.training.model_fit import check_fit
from ..smra_core.training.subject import find_missing_masks, train_subject
from ..smra_core.training.sura import SubjectSettings
from ..smra_core.training.trainer import SUBJECT_TRAIN, TrainSettings
from ..smra_core.wan.spec import trim_frames
from .host.backend import ComfyBackend
from .host.conditioning import match_captions, match_options
from .host.denoiser import choose_training_dtype
from .host.images import crop_clip_masks, crop_images, crop_masks
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
from .training.outputs import make_node_output
from .training.progress import GraphProgress, Preview
from .training.run import run_training, show_forecast
from .training.settings_widgets import Widget, make_widgets, update_settings

DEFAULTS, TRAIN_DEFAULTS = SubjectSettings(), SUBJECT_TRAIN
MEMORY_ADVICE = (
    "Lower batch_size in SMRA Training Options, or lower width and height, or choose a smaller DINOv2."
)
ROWS = (*SIZE, Widget("sura_weight", dict(min=0.0, max=10.0, step=0.01)))


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
                    "images", tooltip="Pictures of the subject. More views give a more reliable LoRA."
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="One prompt for all, such as 'A picture of sks dog', or one for each picture.",
                ),
                io.Mask.Input(
                    "masks", optional=True,
                    tooltip="White where the subject is, one for each picture. Without them SAM finds the "
                    "subject.",
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
                    "each frame (such as SAM 3's track gives) or one for all. Off, each image is a sample of "
                    "its own. A clip shows how the subject looks while it moves, and needs more memory.",
                ),
            ],
            outputs=make_outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        # Whatever takes part in autograd must be made outside of ComfyUI's inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            given = parse_inputs(**inputs)
            backend = ComfyBackend(given.model, given.vae, given.contexts)
            check_fit(given.settings, backend.spec)
            samples, notes = make_samples(backend, given)
            shapes = [choose_latent_shape(backend, sample.frames) for sample in samples]
            backend.read_conditions(given.captions, given.options, shapes)
            aligned = given.settings.align_block if given.settings.sura_weight else None
            backend.check_training_step(given.settings.plan, given.captions[0], shapes[0], aligned)
            show_subject_forecast(cls, backend, given, samples, notes)
            if not given.as_clip:
                unmasked, samples = samples, find_missing_masks(samples, given.sam, backend)
                log_notes(describe_new_masks(unmasked, samples))
            show_masked_pictures(samples)
            progress = GraphProgress(cls, make_preview(backend, given))
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
    images: Tensor
    """Pictures `B H W 3` in [0, 1], a normal tensor."""
    masks: Tensor | None
    """Masks `B H W` in [0, 1], a normal tensor, or None."""
    as_clip: bool
    """Whether the images are the frames of one clip."""
    own_sizes: bool
    """Whether the images keep their own shape."""
    captions: list[str]
    """Caption of each picture, or of the clip."""
    contexts: dict[str, Tensor]
    """Text context `T 4096` of each caption."""
    options: list[dict]
    """What stands beside the prompt of each picture in its CONDITIONING."""
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
    images: Tensor,
    positive,
    masks: Tensor | None = None,
    dinov2: Path | None = None,
    sam: Path | None = None,
    captions: str = "",
    training_options: TrainingOptions | None = None,
    loss_options: LossOptions | None = None,
    as_clip: bool = False,
    **widgets,
) -> SubjectInputs:
    """Return the node's inputs in the types of the core. Raises ValueError for values that cannot work.

    Call outside of inference mode.
    """
    training, losses = training_options or TrainingOptions(), loss_options or LossOptions()
    subject_plan, _ = training.plans
    settings = replace(losses.subject, plan=subject_plan, **training.loss_settings)
    settings = update_settings(settings, (RANK, *ROWS), widgets)
    train = update_settings(training.train, [STEPS], widgets)
    name = make_file_name(widgets["name"])
    check_conditioning(positive)
    count = 1 if as_clip else len(images)
    names, contexts = match_captions(positive, count, captions or "")
    return SubjectInputs(
        model, vae, as_normal_tensor(images), None if masks is None else as_normal_tensor(masks), as_clip,
        training.own_sizes, names,
        contexts, match_options(positive, count), dinov2, sam, settings, train, name,
        widgets["preview_every"],
    )  # fmt: skip


def make_samples(
    backend: ComfyBackend, given: SubjectInputs
) -> tuple[list[SubjectImage] | list[SubjectClip], list[str]]:
    """Return the pictures or the clip with masks at the training size, and notes on what the crop cut off."""
    size = given.settings.width, given.settings.height
    if given.own_sizes:
        shape = given.images.shape[2], given.images.shape[1]
        size = keep_shape(shape, size, backend.spec.latents.token_pixels)
    return make_subject_clip(given, size) if given.as_clip else make_subject_set(given, size)


def make_subject_clip(given: SubjectInputs, size: Size) -> tuple[list[SubjectClip], list[str]]:
    """Return the images, at most 4n+1, as one clip with its masks, and notes. ValueError without masks."""
    used = trim_frames(len(given.images))
    images, _, notes = split_alpha(given.images[:used], "frame")
    check_none_is_black(images)
    pixels, crop_notes = crop_images(images, size)
    masks_px, mask_notes = None, ["it has no masks"]
    if given.masks is not None:
        masks_px, mask_notes = crop_clip_masks(given.masks, given.images, used, size)
    if masks_px is None or not masks_px.any():
        raise ValueError(
            f"The clip's masks show no subject ({'; '.join(mask_notes)}). Connect a mask for each frame, "
            "white on the subject, such as SAM 3's track gives; or turn as_clip off, and SAM finds it."
        )
    notes += [*crop_notes, *mask_notes, f"its masks cover {100 * masks_px.mean().item():.0f} % of the clip"]
    if used < len(given.images):
        notes.append(f"of {len(given.images)} frames {used} are used (WAN needs 4n+1)")
    return [SubjectClip("clip", Path("clip"), pixels, masks_px, given.captions[0])], notes


def make_subject_set(given: SubjectInputs, size: Size) -> tuple[list[SubjectImage], list[str]]:
    """Return the pictures with their masks at the training size, and notes on what the crop cut off."""
    images, alpha, notes = split_alpha(given.images)
    check_none_is_black(images)
    pixels, crop_notes = crop_images(images, size)
    notes += crop_notes
    notes += [
        f"picture {number}: holds black and white alone. If it is a mask, connect it to masks"
        for number, picture in enumerate(images.movedim(-1, 1), 1)
        if may_be_mask(picture)
    ]
    masks: list[Tensor | None] = [None] * len(images)
    if given.masks is not None:
        masks, mask_notes = crop_masks(given.masks, images, size)
        notes += mask_notes
    if alpha is not None and None in masks:
        # An opaque picture has no mask, as among files.
        cut_outs = (alpha >= 0.5).float() * (alpha < 0.5).flatten(1).any(1)[:, None, None]
        alpha_masks, mask_notes = crop_masks(cut_outs, images, size)
        masks = [own if own is not None else cut_out for own, cut_out in zip(masks, alpha_masks, strict=True)]
        notes += ["transparency serves as the mask of pictures without another", *mask_notes]
    return [
        SubjectImage(f"picture {i}", Path(f"picture {i}"), picture, mask, caption)
        for i, (picture, mask, caption) in enumerate(zip(pixels, masks, given.captions, strict=True), 1)
    ], notes


def show_subject_forecast(
    node: type,
    backend: ComfyBackend,
    given: SubjectInputs,
    samples: Sequence[SubjectImage | SubjectClip],
    notes: Sequence[str],
) -> None:
    """Show on the node what the run will take."""
    dtype = choose_training_dtype(backend.device)
    forecast = estimate_subject_run(
        backend.spec, given.settings, given.train, len(samples), dtype, len(samples[0].frames)
    )
    log_notes(notes)
    show_forecast(node, backend, forecast, notes)


def choose_latent_shape(backend: ComfyBackend, frames: Tensor) -> tuple[int, int, int, int]:
    """Return the shape `C f h w` of the latents of a picture or clip `F 3 H W`."""
    return backend.spec.latents.latent_shape(len(frames), frames.shape[3], frames.shape[2])


def make_preview(backend: ComfyBackend, given: SubjectInputs) -> Preview:
    """Return what draws pictures of the first caption while the run goes on."""
    shape = backend.spec.latents.latent_shape(1, given.settings.width, given.settings.height)
    context = given.contexts[given.captions[0]]
    return Preview(backend, context, shape, given.preview_every, given.train.seed)
