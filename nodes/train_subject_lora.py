"""The SMRA Train Subject LoRA node: what a subject looks like, learned from a few pictures of it."""

from pathlib import Path

import torch
from comfy_api.latest import io
from torch import Tensor

from ..smra_core.data.subject_set import SubjectImage
from ..smra_core.training.subject import find_missing_masks, train_subject
from ..smra_core.training.sura import SubjectSettings
from ..smra_core.training.trainer import TrainSettings
from ..smra_core.wan.spec import WanSpec, check_size, latent_shape
from .host.backend import ComfyBackend
from .host.conditioning import captions_and_contexts
from .host.denoiser import training_dtype
from .host.images import crop_images, crop_masks
from .host.inference_tensors import as_normal_tensor
from .host.wire_types import DinoV2Type, SamType
from .training.forecast import subject_forecast
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
from .training.settings_widgets import Widget, chosen

DEFAULTS, TRAIN_DEFAULTS = SubjectSettings(), TrainSettings()
REMEDY = "Lower batch_size, or width and height, or choose a smaller DINOv2."
ROWS = (
    *SIZE,
    Widget(
        "sura_weight",
        "How strongly the look is aligned with DINOv2. Raising it holds identity harder; 0 leaves it out, "
        "and DINOv2 with it.",
        dict(min=0.0, max=10.0, step=0.01),
    ),
    Widget(
        "align_block",
        "The block whose output is aligned. Raising it lets more blocks take part; the paper's is 0, the "
        "authors' code has 2.",
        dict(min=0, max=39),
    ),
    Widget(
        "projector_width",
        "Of the small net between the model and DINOv2, which is thrown away after. Raising it makes the "
        "alignment easier and asks less of the LoRA.",
        dict(min=64, max=8192, step=64),
    ),
    *VELOCITY,
    Widget(
        "plan",
        "Which layers learn. 'subject' is the paper's: it leaves room for a motion LoRA.",
        options=plans(without="motion"),
        id="layers",
    ),
)


class TrainSubjectLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRATrainSubjectLoRA",
            display_name="SMRA Train Subject LoRA",
            category="SMRABooth",
            description=(
                "Trains a LoRA on 3 to 10 pictures of one subject, so that WAN can put it into any scene. "
                "It learns only inside the masks. A canceled run goes on where it stopped."
            ),
            inputs=[
                io.Model.Input("model", tooltip="Wan2.1-T2V, 1.3B or 14B, of any precision."),
                io.Vae.Input("vae", tooltip="WAN 2.1's VAE."),
                io.Image.Input("images", tooltip="Pictures of the subject; more views make it surer."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="One prompt for all, such as 'A picture of sks dog', or one for each picture.",
                ),
                io.Mask.Input(
                    "masks", optional=True,
                    tooltip="White where the subject is, one for each picture. Left out, SAM finds them.",
                ),
                DinoV2Type.Input(
                    "dinov2", optional=True,
                    tooltip="The net whose view of the subject counts. Needed unless sura_weight is 0.",
                ),
                SamType.Input(
                    "sam", optional=True,
                    tooltip="Finds the subject at the center of pictures without a mask.",
                ),
                *front_inputs("subject", DEFAULTS, TRAIN_DEFAULTS),
                *advanced_inputs(DEFAULTS, ROWS, TRAIN_DEFAULTS),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, vae, images, positive, masks=None, dinov2=None, sam=None, captions="", **values
    ) -> io.NodeOutput:
        # Whatever takes part in autograd must be made outside of the host's inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            masks = None if masks is None else as_normal_tensor(masks)
            images = as_normal_tensor(images)
            made = _trained(cls, model, vae, images, positive, masks, dinov2, sam, captions, values)
            return shown(made)


def _trained(
    node, model, vae, images, positive, masks, dinov2: Path | None, sam, captions: str, values: dict
) -> Outputs:
    settings, train = chosen(DEFAULTS, (RANK, *ROWS), values), train_settings(TRAIN_DEFAULTS, values)
    name = file_name(values["name"])
    names, contexts = captions_and_contexts(positive, len(images), captions)
    backend = ComfyBackend(model, vae, contexts)
    check_settings(settings, backend.spec)
    pictures, notes = subject_images(images, masks, names, (settings.width, settings.height))
    shape = latent_shape(1, settings.width, settings.height)
    dtype = training_dtype(backend.device)
    forecast = subject_forecast(backend.spec, settings, train, shape, len(pictures), dtype)
    show_forecast(node, backend, forecast, notes)
    pictures = find_missing_masks(pictures, sam, backend)

    def run(name, progress):
        return train_subject(backend, pictures, dinov2, settings, train, name, progress)

    return run_training_node(node, backend, values, name, contexts[names[0]], shape, run, REMEDY)


def check_settings(settings: SubjectSettings, spec: WanSpec) -> None:
    """ValueError for a size or block that this model does not have."""
    check_size(settings.width, settings.height)
    if settings.sura_weight and settings.align_block >= spec.blocks:
        raise ValueError(
            f"align_block is {settings.align_block}, but this model has blocks 0 to {spec.blocks - 1}. The "
            "paper's is 0."
        )


def subject_images(
    images: Tensor, masks: Tensor | None, captions: list[str], size: tuple[int, int]
) -> tuple[list[SubjectImage], list[str]]:
    """The graph's pictures `B h w 3` and masks `B h w` as a subject set, and what the crop did."""
    pixels, notes = crop_images(images, size)
    made: list[Tensor | None] = [None] * len(images)
    if masks is not None:
        made, mask_notes = crop_masks(masks, images, size)
        notes += mask_notes
    parts = zip(pixels, made, captions, strict=True)
    return [
        SubjectImage(f"picture {i}", Path(f"picture {i}"), picture, mask, caption)
        for i, (picture, mask, caption) in enumerate(parts, 1)
    ], notes
