"""ComfyUI's CLIP Vision and CLIP as the encoder that CLIP-T and CLIP-I need."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...smra_core.evaluation.picture_encoder import NoTextEmbedding

_NO_TEXT = (
    "needs OpenAI's text encoder clip_l.safetensors by Load CLIP, type stable_diffusion, in a file that "
    "holds its text_projection"
)


class HostClip:
    """Pictures through CLIP Vision and texts through CLIP, projected into their common space."""

    name = "ComfyUI's CLIP Vision"

    def __init__(self, clip_vision, clip=None):
        self.clip_vision, self.clip = clip_vision, clip

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Return embeddings `B D` on the CPU of pictures `B 3 H W` in [0, 1], cropped at the center."""
        batches = [self.clip_vision.encode_image(one.movedim(1, -1)) for one in pictures.split(8)]
        return torch.cat([output["image_embeds"].float().cpu() for output in batches])

    def embed_text(self, text: str) -> Tensor:
        """Return the embedding `D` on the CPU of a text; raise NoTextEmbedding without OpenAI's CLIP."""
        if self.clip is None:
            raise NoTextEmbedding(_NO_TEXT)
        weight = self._get_projection()
        # ComfyUI gives out the projected embedding of some encoders, and of others the one before.
        _, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled="unprojected")
        if pooled is None or pooled.shape[-1] != weight.shape[-1]:
            raise NoTextEmbedding(_NO_TEXT)
        return F.linear(pooled.float().cpu(), weight)[0]

    def _get_projection(self) -> Tensor:
        """Return the projection of a single CLIP text encoder. ComfyUI leaves it unfilled for a file without
        one, where it may be zeros or hold numbers of no size that weights have.
        """
        model = self.clip.cond_stage_model
        encoder = getattr(model, str(getattr(model, "clip", "")), None)
        projection = getattr(getattr(encoder, "transformer", None), "text_projection", None)
        weight = getattr(projection, "weight", None)
        if weight is None:
            raise NoTextEmbedding(_NO_TEXT)
        weight = weight.detach().float().cpu()
        is_identity = weight.shape[0] == weight.shape[1] and torch.equal(weight, torch.eye(len(weight)))
        if is_identity or not 1e-4 < weight.std().item() < 10:  # false for NaN, too
            raise NoTextEmbedding(_NO_TEXT)
        return weight
