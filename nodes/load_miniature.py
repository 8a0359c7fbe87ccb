"""The SMRA Load Miniature node: a tiny WAN, trained on rendered sprites, that comes with the pack."""

from pathlib import Path

import torch
from comfy_api.latest import io

from ..smra_core.miniature.held_out_files import render_motion, render_subject
from ..smra_core.miniature.weight_paths import DINOV2_FILE, DIT_FILE, SEA_RAFT_FILE, VAE_FILE
from ..smra_core.wan.hashed_text import HashedText
from ..smra_core.wan.spec import TEXT_DIM
from .host.images import as_image
from .host.versions import replaced_vae_width
from .host.wire_types import DinoV2Type, SeaRaftType


class LoadMiniature(io.ComfyNode):
    """Node that loads the miniature's model, encoders and data."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRALoadMiniature",
            display_name="SMRA Load Miniature",
            category="SMRABooth",
            description=(
                "Loads a WAN that is small enough to try the method on any computer in minutes: moving "
                "colored shapes of 64x64 pixels and 17 frames, and a subject and a motion that it has never "
                "seen. It shows how the nodes work together, not what a real WAN can do. A prompt that it "
                "understands: a red striped square moving right on a navy background."
            ),
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="A WAN 2.1 text-to-video model of 256 channels."
                ),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="Its text encoder: every word is a fixed vector, at most 12 words.",
                ),
                io.Vae.Output(display_name="vae", tooltip="A WAN 2.1 video VAE of 16 channels."),
                DinoV2Type.Output(
                    display_name="dinov2", tooltip="A small network for SMRA Train Subject LoRA."
                ),
                SeaRaftType.Output(
                    display_name="sea_raft", tooltip="A small network for SMRA Train Motion LoRA."
                ),
                io.Image.Output(
                    display_name="subject_images",
                    tooltip="Three pictures of a ball in colors that the miniature has never seen.",
                ),
                io.Mask.Output(display_name="subject_masks", tooltip="Where the ball is in each of them."),
                io.Image.Output(
                    display_name="motion_frames",
                    tooltip="A clip of a square on a zigzag course, new to the miniature, too.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        pictures = render_subject()
        return io.NodeOutput(
            *load_miniature(DIT_FILE, VAE_FILE),
            DINOV2_FILE,
            SEA_RAFT_FILE,
            as_image(torch.stack([painted.frames[0] for _, painted in pictures])),
            torch.cat([painted.mask_px for _, painted in pictures]),
            as_image(render_motion()),
        )


def load_miniature(dit: Path, vae: Path):
    """Return MODEL, CLIP and VAE, read by ComfyUI's own loaders from files in WAN's native names.

    Raises ValueError when a file is missing.
    """
    import comfy.sd
    import comfy.utils

    for path in (dit, vae):
        if not path.is_file():
            raise ValueError(
                f"{path.name} of the miniature is missing from {path.parent}. Install the pack again."
            )
    model = comfy.sd.load_diffusion_model(str(dit))
    weights = comfy.utils.load_torch_file(str(vae))
    with replaced_vae_width(len(weights["encoder.conv1.bias"])):
        decoder = comfy.sd.VAE(sd=weights)
    decoder.throw_exception_if_invalid()
    return model, make_hashed_clip(), decoder


def make_hashed_clip():
    """Return the miniature's text encoder as a CLIP, for ComfyUI's text nodes."""
    import comfy.sd

    class Target:
        clip, tokenizer, params = HashedTextModel, HashedTokenizer, {}

    return comfy.sd.CLIP(Target)


class HashedTokenizer:
    """Tokenizer that returns the text unchanged; the encoder splits it into words."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        pass

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_) -> dict[str, list[str]]:
        return {"hashed": [text]}

    def state_dict(self) -> dict:
        return {}


class HashedTextModel(torch.nn.Module):
    """Word vectors with the interface of ComfyUI's text encoders; there are no weights to load."""

    def __init__(self, dtype=None, device=None, model_options=None):
        super().__init__()
        self.dtypes = {torch.float32}
        # ComfyUI's memory management needs at least one parameter, to know the device by.
        self.device_of_model = torch.nn.Parameter(torch.zeros(1, device=device), requires_grad=False)

    def reset_clip_options(self) -> None:
        pass

    def set_clip_options(self, options: dict) -> None:
        pass

    def encode_token_weights(self, tokens: dict[str, list[str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the context `1 12 4096` and a pooled vector that WAN does not use."""
        context = HashedText().encode(tokens["hashed"])
        return context, torch.zeros(len(context), TEXT_DIM)

    def load_sd(self, state: dict) -> list:
        return []
