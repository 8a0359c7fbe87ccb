"""The SMRA Segment Subject node: find a subject with SAM, and show the mask on the picture."""

from pathlib import Path

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..smra_core.data import mask_morphology
from ..smra_core.encoders.sam import find_subject_mask, load_sam
from ..smra_core.storage.on_demand import loaded_on_first_use
from .host.images import as_image
from .host.inference_tensors import as_normal_tensor
from .host.picture_strip import DIMMED
from .host.wire_types import SamType

MENDING = (
    (
        "close_holes",
        "Radius in pixels up to which holes and gaps of the mask are filled.",
        "fills larger ones",
    ),
    ("drop_specks", "Radius in pixels up to which specks and spikes are removed.", "removes larger ones"),
    ("soften", "Radius in pixels over which the mask's edge is blurred.", "blurs it more widely"),
)
"""Inputs that mend the mask, in the order in which they work: what each is, and what raising it does."""


class SegmentSubject(io.ComfyNode):
    """Node that finds a subject with SAM."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRASegmentSubject",
            display_name="SMRA Segment Subject",
            category="SMRABooth",
            description=(
                "Finds the subject in each picture with SAM and shows it on a darkened background. Move the "
                "point onto the subject where it does not fill the center."
            ),
            inputs=[
                io.Image.Input("images", tooltip="Pictures of one subject."),
                SamType.Input("sam", tooltip="SAM, from SMRA Load SAM."),
                io.Float.Input(
                    "x",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Point on the subject, as a share of the width. Raising it moves the point "
                    "right; 0.5 is the center.",
                ),
                io.Float.Input(
                    "y",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Point on the subject, as a share of the height. Raising it moves the point "
                    "down; 0.5 is the center.",
                ),
                *(
                    io.Int.Input(
                        name,
                        default=0,
                        min=0,
                        max=64,
                        optional=True,
                        tooltip=f"{about} Raising it {raised}; 0 leaves the mask as SAM finds it.",
                    )
                    for name, about, raised in MENDING
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="masks", tooltip="White on the subject, one for each picture."),
                io.Image.Output(
                    display_name="preview", tooltip="The subject, with everything else darkened."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images,
        sam: Path,
        x: float,
        y: float,
        close_holes: int = 0,
        drop_specks: int = 0,
        soften: int = 0,
    ) -> io.NodeOutput:
        with torch.inference_mode(False), torch.no_grad():
            pixels = as_normal_tensor(images)[..., :3].movedim(-1, 1)
            masks = segment_pictures(pixels, sam, (x, y))
            masks = mask_morphology.close_holes(masks, close_holes)
            masks = mask_morphology.drop_specks(masks, drop_specks)
            masks = mask_morphology.soften(masks, soften)
            preview = as_image(pixels * (DIMMED + (1 - DIMMED) * masks))
        return io.NodeOutput(masks[:, 0], preview, ui=ui.PreviewImage(preview))


def segment_pictures(pictures: Tensor, sam: Path, position: tuple[float, float]) -> Tensor:
    """Return masks `B 1 H W` of 0 and 1 of pictures `B 3 H W` in [0, 1].

    `position` is a point (x, y) on the subject, in shares of width and height.
    """
    import comfy.model_management as management

    device = management.get_torch_device()
    height, width = pictures.shape[-2:]
    point = (min(position[0] * width, width - 1), min(position[1] * height, height - 1))
    with loaded_on_first_use(lambda: load_sam(sam).to(device)) as model:
        masks = []
        for picture in pictures:
            management.throw_exception_if_processing_interrupted()
            masks.append(find_subject_mask(model(), picture.to(device), point=point).cpu())
        return torch.stack(masks)
