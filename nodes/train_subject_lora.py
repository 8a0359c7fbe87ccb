"""The SMRA Train Subject LoRA node: what a subject looks like, learnt from a few pictures of it."""

from dataclasses import replace
from pathlib import Path

import torch
from comfy_api.latest import io
from torch import Tensor

from ..smra_core.encoders.sam import load_sam, subject_mask
from ..smra_core.file_identity import identity
from ..smra_core.on_demand import on_demand
from ..smra_core.sparse import PLANS
from ..smra_core.subject_set import SubjectImage
from ..smra_core.subject_training import train_subject
from ..smra_core.sura import SubjectSettings
from ..smra_core.tensor_cache import content_hash
from ..smra_core.wan import LATENT_CHANNELS, SPATIAL_STRIDE, check_size
from .graph_images import framed, framed_masks
from .graph_place import GraphPlace
from .graph_progress import GraphProgress, Preview
from .graph_text import contexts_of
from .host_wan import training_dtype
from .inference_tensors import ordinary
from .load_teachers import DinoV2Type, SamType
from .node_text import advanced, show_text
from .preflight import Estimate, report, weights_bytes
from .trained_lora import Outputs, file_name, published, run_to_the_end, shown
from .training_inputs import advanced_inputs, front_inputs, outputs, train_settings

DEFAULTS = SubjectSettings()
REMEDY = "Lower batch_size, or width and height, or choose a smaller DINOv2."
_STEPS = 1000
_PLANS = [name for name in PLANS if not name.startswith("motion")]


class TrainSubjectLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRATrainSubjectLoRA",
            display_name="SMRA Train Subject LoRA",
            category="SMRABooth",
            description=(
                "Trains a LoRA on 3 to 10 pictures of one subject, so that WAN can put it into any scene. "
                "It learns only inside the masks. A cancelled run goes on where it stopped."
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
                    tooltip="Finds the subject at the centre of pictures without a mask.",
                ),
                *front_inputs("subject", _STEPS, DEFAULTS.rank),
                *_method_inputs(),
                *advanced_inputs(),
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
            masks = None if masks is None else ordinary(masks)
            images = ordinary(images)
            made = _trained(cls, model, vae, images, positive, masks, dinov2, sam, captions, values)
            return shown(made)


def _method_inputs() -> list:
    inputs = [
        io.Int.Input(
            "width", default=DEFAULTS.width, min=64, max=1280, step=16,
            tooltip="Pictures are scaled and cropped to it. Raising it shows finer detail and takes memory.",
        ),
        io.Int.Input(
            "height", default=DEFAULTS.height, min=64, max=1280, step=16,
            tooltip="As width.",
        ),
        io.Float.Input(
            "sura_weight", default=DEFAULTS.sura_weight, min=0.0, max=10.0, step=0.01,
            tooltip="How strongly the look is aligned with DINOv2. Raising it holds identity harder; 0 "
            "leaves it out, and DINOv2 with it.",
        ),
        io.Int.Input(
            "align_block", default=DEFAULTS.align_block, min=0, max=39,
            tooltip="The block whose output is aligned. Raising it lets more blocks take part; the paper's "
            "is 0, the authors' code has 2.",
        ),
        io.Combo.Input(
            "layers", options=_PLANS, default="subject",
            tooltip="Which layers learn. 'subject' is the paper's: it leaves room for a motion LoRA.",
        ),
    ]  # fmt: skip
    return [advanced(item) for item in inputs]


def _trained(
    node, model, vae, images, positive, masks, dinov2: Path | None, sam, captions: str, values: dict
) -> Outputs:
    settings, train = _settings(values), train_settings(values)
    name = file_name(values["name"])
    names, contexts = contexts_of(positive, len(images), captions)
    place = GraphPlace(model, vae, contexts)
    pictures, notes = subject_images(images, masks, names, (settings.width, settings.height))
    pictures = masked(place, pictures, sam)
    shape = (LATENT_CHANNELS, 1, settings.height // SPATIAL_STRIDE, settings.width // SPATIAL_STRIDE)
    _tell(node, place, settings, train, shape, len(pictures), notes)
    preview = Preview(place, contexts[names[0]], shape, values["preview_every"], train.seed)
    progress = GraphProgress(node, preview)
    return published(
        run_to_the_end(
            lambda: train_subject(place, pictures, dinov2, settings, train, name, progress), REMEDY
        ),
        name,
    )


def _settings(values: dict) -> SubjectSettings:
    check_size(values["width"], values["height"])
    same = {key: values[key] for key in ("rank", "width", "height", "sura_weight", "align_block")}
    return replace(DEFAULTS, plan=PLANS[values["layers"]], **same)


def subject_images(
    images: Tensor, masks: Tensor | None, captions: list[str], size: tuple[int, int]
) -> tuple[list[SubjectImage], list[str]]:
    """The graph's pictures `B h w 3` and masks `B h w` as a subject set, and what the crop did."""
    pixels, notes = framed(images, size)
    made: list[Tensor | None] = [None] * len(images)
    if masks is not None:
        made, mask_notes = framed_masks(masks, images, size)
        notes += mask_notes
    parts = zip(pixels, made, captions, strict=True)
    return [
        SubjectImage(f"picture {i}", Path(f"picture {i}"), picture, mask, caption)
        for i, (picture, mask, caption) in enumerate(parts, 1)
    ], notes


def masked(place: GraphPlace, pictures: list[SubjectImage], sam: Path | None) -> list[SubjectImage]:
    """The pictures, each with a mask: SAM finds the missing ones, once. ValueError without SAM."""
    missing = [picture for picture in pictures if picture.mask_px is None]
    if missing and sam is None:
        raise ValueError(
            f"{missing[0].name} has no mask, or an empty one. Connect masks that are white where the subject "
            "is, or connect SAM, which finds the subject at the centre."
        )
    own = identity(sam) if missing else ""
    with on_demand(lambda: load_sam(sam).to(place.device)) as model:

        def mask_of(picture: SubjectImage) -> Tensor:
            if picture.mask_px is not None:
                return picture.mask_px
            key = {"sam": own, "picture": content_hash(picture.pixels)}
            find = lambda: {"mask": subject_mask(model(), picture.pixels.to(place.device))}  # noqa: E731
            return place.cache.get_or_compute("sam", key, find)["mask"]

        return [picture._replace(mask_px=mask_of(picture)) for picture in pictures]


def _tell(node, place: GraphPlace, settings, train, shape, count: int, notes: list[str]) -> None:
    dtype = training_dtype(place.device)
    estimate = Estimate(place.spec(), settings.plan, settings.rank, train, torch.Size(shape))
    projector = settings.projector_width * (place.spec().dim + settings.projector_width + 1536)
    place.memory_required = estimate.memory(dtype, projector=projector if settings.sura_weight else 0)
    pictures = f"{count} pictures of {settings.width}x{settings.height}"
    seconds = estimate.seconds(place.device, dtype)
    line = report(estimate, pictures, place.memory_required, weights_bytes(place.model), seconds, False)
    show_text(node, "\n".join([line, *notes]))
