"""The extra inputs of a WAN variant, as ComfyUI's sampler makes them: the MODEL itself is asked what it makes
of the wired CONDITIONING, so that no variant is known here by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...smra_core.wan.condition import IMAGE_CHANNELS, Condition, ExtraInputs, list_parts
from ...smra_core.wan.spec import pixel_frames
from .inference_tensors import as_normal_tensor

_MASKED_IMAGES = {"concat_latent_image": "concat_mask", "vace_frames": "vace_mask"}
"""Images of a CONDITIONING that are on the latents' grid, `1 C f h w` or lists of such, and their masks: 0
where the model is given the image, 1 where it is to make one.
"""
_INPUT_OF_MASK = {"concat_mask": IMAGE_CHANNELS, "vace_mask": "vace_context"}
"""Inputs of the DiT that a mask is part of; it has no effect on a model without them."""
_ON_THE_GRID = (IMAGE_CHANNELS, "vace_context")
"""Inputs of the DiT that have the latents' length and size."""


def check_shared_images(options: Sequence[Mapping[str, Any]], shapes: Sequence[Sequence[int]]) -> None:
    """Raise ValueError if several clips with latents `C f h w` share the image that was made from one."""
    clips = [each for each, shape in zip(options, shapes, strict=True) if shape[1] > 1]
    shared = [
        values for values in clips if _list_lengths(values) and sum(each is values for each in clips) > 1
    ]
    if shared:
        raise ValueError(
            f"'positive' carries one image or video for {len(clips)} clips, and it shows one of them. Make a "
            "conditioning for each: give the node that makes it, such as WanImageToVideo, the list of clips."
        )


def make_condition(
    model, options: Mapping[str, Any], context: Tensor, shape: Sequence[int]
) -> tuple[Condition, list[str]]:
    """Return what a MODEL takes of a sample with latents of shape `C f h w`, and notes for the user on it.

    `options` are the values of one entry of a CONDITIONING, `context` its text `T 4096`. Images that would
    show the model the whole sample, as that of a still does, are left out. Raises ValueError for images that
    were made for a clip of another length or size.
    """
    options, notes = _leave_out_whole_images(dict(options), shape[1])
    _check_lengths(options, shape[1])
    inputs = encode_extra_inputs(model, options, context, shape)
    _check_sizes(inputs, shape)
    given = read_given_latents(options, shape[1], inputs)
    notes += _name_missing_images(model, options, inputs) if not notes else []
    return Condition(inputs, given), [*notes, *_describe(inputs, given)]


def encode_extra_inputs(
    model, options: Mapping[str, Any], context: Tensor, shape: Sequence[int]
) -> ExtraInputs:
    """Return what the MODEL makes of the options for latents of shape `C f h w`: normal tensors on the CPU,
    without the axis of the batch, by the names of its forward's arguments.
    """
    import comfy.sampler_helpers
    import comfy.samplers

    # As ComfyUI does it; some models write into what they are given, which must stay the graph's.
    with torch.inference_mode():
        entry = comfy.sampler_helpers.convert_cond([[context[None], _copy_tensors(options)]])
        noise = torch.zeros(1, *shape)
        (encoded,) = comfy.samplers.encode_model_conds(
            model.model.extra_conds, entry, noise, noise.device, "positive",
            latent_image=None, denoise_mask=None, seed=None,
        )  # fmt: skip
        values = {
            name: cond.process_cond(batch_size=1, area=None, device=noise.device).cond
            for name, cond in encoded["model_conds"].items()
            if name != "c_crossattn"  # the text, which a sample has already
        }
    return {name: _take_first(value) for name, value in values.items() if value is not None}


def _copy_tensors(value: Any) -> Any:
    """Return a copy of tensors, and of lists and mappings of them; other objects stay the same."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {name: _copy_tensors(part) for name, part in value.items()}
    return [_copy_tensors(part) for part in value] if isinstance(value, list) else value


def _take_first(value: Any) -> Any:
    """Return tensors `1 ...` without the axis of the batch, as normal ones on the CPU."""
    if isinstance(value, Tensor):
        return as_normal_tensor(value)[0].cpu()
    return [_take_first(part) for part in value] if isinstance(value, list | tuple) else value


def read_given_latents(options: Mapping[str, Any], frames: int, inputs: ExtraInputs) -> Tensor | None:
    """Return which of a sample's latents are wholly given to the model, bool `f`; None where none is."""
    given = torch.zeros(frames, dtype=torch.bool)
    for name, input_name in _INPUT_OF_MASK.items():
        for mask in _list_tensors(options.get(name)) if input_name in inputs else ():
            latents = (as_normal_tensor(mask) == 0).movedim(2, 0).flatten(1).all(1).cpu()[:frames]
            given[: len(latents)] |= latents
    return given if given.any() else None


def _list_tensors(value: Any) -> list[Tensor]:
    """Return the tensors `1 C f h w` of a value of a CONDITIONING: one, a list, or none."""
    parts = value if isinstance(value, list | tuple) else [value]
    return [part for part in parts if isinstance(part, Tensor) and part.ndim == 5]


def _leave_out_whole_images(options: dict[str, Any], frames: int) -> tuple[dict[str, Any], list[str]]:
    """Leave images out that give every latent of the sample, and those of clips where it is a still."""
    given = read_given_latents(options, frames, dict.fromkeys(_INPUT_OF_MASK.values()))
    gives_all = given is not None and bool(given.all())
    is_of_clip = frames == 1 and any(latents != 1 for latents in _list_lengths(options))
    if not (gives_all or is_of_clip):
        return options, []
    left_out = {*_MASKED_IMAGES, *_MASKED_IMAGES.values(), "vace_strength"}
    return {name: value for name, value in options.items() if name not in left_out}, [
        "The image of 'positive' would give the model all of a sample, so that nothing could be learned: "
        "the model is trained with the image left out (zeros)."
    ]


def _list_lengths(options: Mapping[str, Any]) -> list[int]:
    return [image.shape[2] for name in _MASKED_IMAGES for image in _list_tensors(options.get(name))]


def _check_lengths(options: Mapping[str, Any], frames: int) -> None:
    for latents in _list_lengths(options):
        if latents != frames:
            raise ValueError(
                f"The image or video of 'positive' is made for {pixel_frames(latents)} frames ({latents} "
                f"latents), and the clip has {pixel_frames(frames)} ({frames}). Set length to "
                f"{pixel_frames(frames)} in the node that made it, such as WanImageToVideo, and give it no "
                "reference image that it puts in front."
            )


def _check_sizes(inputs: ExtraInputs, shape: Sequence[int]) -> None:
    for name in _ON_THE_GRID:
        if name in inputs and tuple(inputs[name].shape[-3:]) != tuple(shape[1:]):
            wanted, seen = ("x".join(map(str, size)) for size in (shape[1:], inputs[name].shape[-3:]))
            raise ValueError(
                f"'positive' is made for latents of {seen} (frames x height x width), and this sample has "
                f"{wanted}. Set the width, height and length of this node in the node that made it, too."
            )


def _name_missing_images(model, options: Mapping[str, Any], inputs: ExtraInputs) -> list[str]:
    """Return a note on each image that the model could take and the CONDITIONING does not carry."""
    notes = []
    if IMAGE_CHANNELS in inputs and options.get("concat_latent_image") is None:
        notes.append(
            "The model takes an image, and 'positive' carries none: it is trained with the image left out "
            "(zeros). For a motion, put WanImageToVideo with the clip's first frame before this node."
        )
    if getattr(model.model.diffusion_model, "img_emb", None) is not None and "clip_fea" not in inputs:
        notes.append(
            "The model takes CLIP's features of an image, and 'positive' carries none. For a motion, connect "
            "CLIP Vision Encode to WanImageToVideo, as for sampling."
        )
    return notes


def _describe(inputs: ExtraInputs, given: Tensor | None) -> list[str]:
    """Return a note on what the model takes besides the text, or none where it takes nothing."""
    parts = [
        f"{name} {'x'.join(map(str, part.shape))}" if isinstance(part, Tensor) else f"{name} {part}"
        for name, part in list_parts(inputs)
    ]
    if not parts:
        return []
    counted = (
        ""
        if given is None
        else (f" Of {len(given)} latents {int(given.sum())} are given; the velocity loss leaves them out.")
    )
    return [f"Besides the text the model takes {', '.join(parts)}.{counted}"]
