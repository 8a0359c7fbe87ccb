"""Outputs that the nodes that read data have in common, and how they are made."""

import torch
from comfy_api.latest import io

from ...smra_core.data.subject_clip import SubjectClip
from ...smra_core.data.subject_set import SubjectImage


def make_prompt_outputs(what: str) -> list:
    """Return the outputs for lists of prompts, one for each `what`, encoded and in words."""
    return [
        io.Conditioning.Output(
            display_name="positive", is_output_list=True, tooltip=f"The prompt of each {what}, encoded."
        ),
        io.String.Output(
            display_name="captions",
            is_output_list=True,
            tooltip="The prompts in words, for the training node's captions.",
        ),
    ]


def encode_captions(clip, captions: list[str]) -> list:
    """Return a CONDITIONING with one entry for each caption; equal captions are encoded once."""
    once = {caption: clip.encode_from_tokens_scheduled(clip.tokenize(caption)) for caption in set(captions)}
    return [entry for caption in captions for entry in once[caption]]


def get_masks(sample: SubjectImage | SubjectClip) -> torch.Tensor:
    """Return the masks of a sample as a MASK `F H W`, black where it has none."""
    masks_px = torch.zeros_like(sample.frames[:, :1]) if sample.masks_px is None else sample.masks_px
    return masks_px[:, 0]
