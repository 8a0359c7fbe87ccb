"""A node of the tests in the server: random features of an image, in place of CLIP vision with its 1.2 GB."""

import torch


class RandomOutput:
    """CLIP's features of an image, as CLIP Vision Encode gives them out."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.penultimate_hidden_states = torch.randn(1, 5, 1280, generator=generator)


class RandomClipVision:
    """Node that gives out CLIP_VISION_OUTPUT."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP_VISION_OUTPUT",), "draw", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0})}}

    def draw(self, seed):
        return (RandomOutput(seed),)


NODE_CLASS_MAPPINGS = {"RandomClipVision": RandomClipVision}
