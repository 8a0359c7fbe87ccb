"""SAM: where the subject is, for pictures that come without a mask.

Kirillov et al., "Segment Anything", 2023; the net is that of the package segment_anything.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor

from ..data.crop import to_uint8
from ..storage.weight_check import fill_module, join_names
from ..storage.weight_file import WeightFile, read_weight_file
from .sam_automatic import most_likely_subject, subject_candidates

log = logging.getLogger("smrabooth")

_WIDTH_WEIGHT = "image_encoder.pos_embed"
_KINDS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""By the width of the image encoder."""
_MEAN_AND_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""ImageNet's RGB statistics in 0..255, which SAM keeps in no file."""


def load_sam(path: str | Path) -> Sam:
    """The net in a file of the authors (vit_b, vit_l or vit_h, found from its width), frozen, in eval mode,
    float32, on the CPU.

    ValueError if the file is not readable (see `read_weight_file`), is not SAM in the authors' names, or if
    any weight is missing, unknown, misshapen or not finite.
    """
    file = read_weight_file(path)
    kind = _kind(file)
    with torch.device("meta"):  # memory is taken once the file is known to fill it
        sam = sam_model_registry[kind]()
    fill_module(sam, file.tensors, str(file.path))
    sam.pixel_mean, sam.pixel_std = (torch.tensor(rgb).view(-1, 1, 1) for rgb in _MEAN_AND_STD)
    log.info("SAM: %s from %s", kind, file.path.name)
    return sam.requires_grad_(False).eval()


def find_subject_mask(
    sam: Sam,
    picture: Tensor,
    box: tuple[float, float, float, float] | None = None,
    point: tuple[float, float] | None = None,
) -> Tensor:
    """Where the subject of a picture `3 H W` in [0, 1] is: mask `1 H W` of 0 and 1, float32, on its device.

    The prompt is a box (left, top, right, bottom), a point (x, y) on the subject, or both, in pixels; without
    either everything in the picture is looked at, and the large, central, stable mask is taken. Of SAM's
    three masks at a prompt (part, object, whole) the one counts whose IoU SAM predicts to be highest.
    ValueError for a prompt outside the picture, or when nothing is found.
    """
    _check_picture(picture)
    if box is None and point is None:
        return _automatic_mask(sam, picture)
    height, width = picture.shape[-2:]
    _check_prompt(box, point, width, height)
    predictor = SamPredictor(sam)
    predictor.set_image(_bytes(picture))
    masks, predicted_iou, _ = predictor.predict(
        point_coords=None if point is None else np.array([point]),
        point_labels=None if point is None else np.ones(1),
        box=None if box is None else np.array(box),
        multimask_output=True,
    )
    mask_px = torch.from_numpy(masks[predicted_iou.argmax()])[None].to(picture.device, torch.float32)
    if not mask_px.any():
        raise ValueError(
            f"SAM found no subject at {_prompt_text(box, point)}. Crop the picture so that the subject fills "
            "its center, or paint a mask."
        )
    return mask_px


def _automatic_mask(sam: Sam, picture: Tensor) -> Tensor:
    mask = most_likely_subject(subject_candidates(sam, _bytes(picture)))
    if mask is None:
        raise ValueError(
            "SAM found nothing in the picture that looks like its subject: no stable mask near the center. "
            "Give a point on the subject or a box around it, or paint a mask."
        )
    return mask[None].to(picture.device, torch.float32)


def _kind(file: WeightFile) -> str:
    position = file.tensors.get(_WIDTH_WEIGHT)
    width = position.shape[-1] if position is not None and position.ndim == 4 else None
    if width not in _KINDS:
        seen = f"{_WIDTH_WEIGHT} has width {width}" if width else f"it has no {_WIDTH_WEIGHT} `1 h w D`"
        raise ValueError(
            f"{file.path} is not SAM: {seen} (needed: {list(_KINDS)}); it holds for example "
            f"{join_names(sorted(file.tensors))}. Choose sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth or "
            "sam_vit_h_4b8939.pth of facebookresearch/segment-anything."
        )
    return _KINDS[width]


def _bytes(picture: Tensor) -> np.ndarray:
    """`H W 3` uint8."""
    return np.ascontiguousarray(to_uint8(picture).permute(1, 2, 0).cpu().numpy())


def _check_picture(picture: Tensor) -> None:
    if picture.ndim != 3 or picture.shape[0] != 3 or 0 in picture.shape:
        raise ValueError(f"SAM looks at one picture `3 H W`, got {tuple(picture.shape)}.")
    low, high = picture.min().item(), picture.max().item()
    if not (-0.05 <= low and high <= 1.05):  # resizing may overshoot a little
        raise ValueError(
            f"SAM needs a picture in [0, 1]; this one reaches from {low:.3g} to {high:.3g}. Rescale it first."
        )


def _check_prompt(box: tuple | None, point: tuple | None, width: int, height: int) -> None:
    inside = point is None or (0 <= point[0] < width and 0 <= point[1] < height)
    if box is not None:
        left, top, right, bottom = box
        inside = inside and 0 <= left < right <= width and 0 <= top < bottom <= height
    if not inside:
        raise ValueError(
            f"SAM was asked about {_prompt_text(box, point)}, which is not inside the picture of "
            f"{width}x{height} px. A point is x, y; a box is left, top, right, bottom, in pixels."
        )


def _prompt_text(box: tuple | None, point: tuple | None) -> str:
    named = (("box", box), ("point", point))
    return " and ".join(f"{name} {value}" for name, value in named if value is not None)
