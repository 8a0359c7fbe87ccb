"""SAM: the mask of the subject, for pictures that come without one.

Kirillov et al., "Segment Anything", 2023; the net is that of the package segment_anything, which is imported
only where it is used, so that the pack's nodes load without it.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..storage.weight_check import fill_module, join_names
from ..storage.weight_file import WeightFile, read_weight_file
from ..wan.latents import to_uint8
from .packages import import_package
from .sam_automatic import choose_subject, find_candidates

log = logging.getLogger("smrabooth")

_WIDTH_WEIGHT = "image_encoder.pos_embed"
_KINDS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""SAM's three sizes by the width of their image encoder."""
_MEAN_AND_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""ImageNet's RGB mean and standard deviation in 0..255, which are in no file of SAM."""


def load_sam(path: str | Path) -> nn.Module:
    """Load the net from a file of the authors (vit_b, vit_l or vit_h, found from its width): frozen, in eval
    mode, float32, on the CPU.

    ValueError if the file is not readable (see `read_weight_file`), is not SAM in the authors' names, or if
    any weight is missing, unknown, misshapen or not finite; ImportError if segment_anything is not installed.
    """
    file = read_weight_file(path)
    kind = _find_kind(file)
    registry = import_package("segment_anything", "SAM").sam_model_registry
    with torch.device("meta"):  # memory is allocated once the file's weights are known to fit
        sam = registry[kind]()
    fill_module(sam, file.tensors, str(file.path))
    sam.pixel_mean, sam.pixel_std = (torch.tensor(rgb).view(-1, 1, 1) for rgb in _MEAN_AND_STD)
    log.info("SAM: %s from %s", kind, file.path.name)
    return sam.requires_grad_(False).eval()


def find_subject_mask(
    sam: nn.Module,
    picture: Tensor,
    box: tuple[float, float, float, float] | None = None,
    point: tuple[float, float] | None = None,
) -> Tensor:
    """Find the subject of a picture `3 H W` in [0, 1]; return its mask `1 H W` of 0 and 1, float32, on the
    picture's device.

    The prompt is a box (left, top, right, bottom), a point (x, y) on the subject, or both, in pixels. SAM
    gives three masks for a prompt (part, object, whole); the one with the highest predicted IoU is returned.
    Without a prompt, the large, central, stable one of all masks in the picture is returned. ValueError if
    the prompt is outside the picture, or if nothing is found.
    """
    _check_picture(picture)
    if box is None and point is None:
        return _find_subject_without_prompt(sam, picture)
    height, width = picture.shape[-2:]
    _check_prompt(box, point, width, height)
    predictor = import_package("segment_anything", "SAM").SamPredictor(sam)
    predictor.set_image(_to_uint8_array(picture))
    masks, predicted_iou, _ = predictor.predict(
        point_coords=None if point is None else np.array([point]),
        point_labels=None if point is None else np.ones(1),
        box=None if box is None else np.array(box),
        multimask_output=True,
    )
    mask_px = torch.from_numpy(masks[predicted_iou.argmax()])[None].to(picture.device, torch.float32)
    if not mask_px.any():
        raise ValueError(
            f"SAM found no subject at {_format_prompt(box, point)}. Crop the picture so that the subject "
            "fills its center, or paint a mask."
        )
    return mask_px


def _find_subject_without_prompt(sam: nn.Module, picture: Tensor) -> Tensor:
    mask_px = choose_subject(find_candidates(sam, _to_uint8_array(picture)))
    if mask_px is None:
        raise ValueError(
            "SAM found nothing in the picture that looks like its subject: no stable mask near the center. "
            "Give a point on the subject or a box around it, or paint a mask."
        )
    return mask_px[None].to(picture.device, torch.float32)


def _find_kind(file: WeightFile) -> str:
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


def _to_uint8_array(picture: Tensor) -> np.ndarray:
    """Convert a picture `3 H W` in [0, 1] to `H W 3` uint8."""
    return np.ascontiguousarray(to_uint8(picture).permute(1, 2, 0).cpu().numpy())


def _check_picture(picture: Tensor) -> None:
    if picture.ndim != 3 or picture.shape[0] != 3 or 0 in picture.shape:
        raise ValueError(
            f"SAM segments one picture `3 H W` at a time, got {tuple(picture.shape)}. Give them one by one."
        )
    low, high = picture.min().item(), picture.max().item()
    if not (-0.05 <= low and high <= 1.05):  # resizing may overshoot a little
        raise ValueError(
            f"SAM needs a picture with values in [0, 1]; these reach from {low:.3g} to {high:.3g}. Rescale "
            "them first."
        )


def _check_prompt(box: tuple | None, point: tuple | None, width: int, height: int) -> None:
    inside = point is None or (0 <= point[0] < width and 0 <= point[1] < height)
    if box is not None:
        left, top, right, bottom = box
        inside = inside and 0 <= left < right <= width and 0 <= top < bottom <= height
    if not inside:
        raise ValueError(
            f"The prompt for SAM is {_format_prompt(box, point)}, which is not inside the picture of "
            f"{width}x{height} px. A point is x, y; a box is left, top, right, bottom, in pixels."
        )


def _format_prompt(box: tuple | None, point: tuple | None) -> str:
    prompts = (("box", box), ("point", point))
    return " and ".join(f"{name} {value}" for name, value in prompts if value is not None)
