"""CLIP from a folder of transformers: embeddings of pictures and of texts in one space.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021. PickScore is
such a folder, too. The metrics CLIP-T and CLIP-I come from here; nothing is trained with CLIP.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..wan.latents import to_uint8
from .packages import import_package

PICTURES_PER_BATCH = 8
"""Number of pictures that are embedded at the same time."""


class Clip:
    """Frozen CLIP with the picture processor and the tokenizer of its folder."""

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        """Load from a folder with config.json, weights, preprocessor_config.json and the tokenizer's files.

        Nothing is downloaded and no code of the folder is run. Raises ValueError when the folder is not
        CLIP's, or lacks a file.
        """
        transformers = import_package("transformers", "CLIP")
        self.name = folder.name
        model = _load_part(transformers.CLIPModel, folder)
        self.processor = _load_part(transformers.AutoImageProcessor, folder)
        self.tokenizer = _load_part(transformers.AutoTokenizer, folder)
        self.model = model.float().requires_grad_(False).eval().to(device)

    @property
    def logit_scale(self) -> float:
        """Factor of the cosines in CLIP's logits, and in PickScore's score."""
        return self.model.logit_scale.exp().item()

    @torch.no_grad()
    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Return embeddings `B D` on the CPU of pictures `B 3 H W` in [0, 1], not normalized.

        They are resized and cropped at the center as the folder's processor says: what is left and right of
        the central square of a wide picture does not count.
        """
        return torch.cat([self._embed_batch(batch) for batch in pictures.split(PICTURES_PER_BATCH)])

    @torch.no_grad()
    def embed_text(self, text: str) -> Tensor:
        """Return the embedding `D` on the CPU of a text; what exceeds CLIP's 77 tokens is cut off."""
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer([text], truncation=True, max_length=longest, return_tensors="pt")
        return _get_features(self.model.get_text_features(**tokens.to(self.model.device)))[0].cpu()

    def _embed_batch(self, pictures: Tensor) -> Tensor:
        arrays = list(to_uint8(pictures.cpu()).movedim(1, -1).numpy())
        pixels = self.processor(images=arrays, return_tensors="pt")["pixel_values"]
        return _get_features(self.model.get_image_features(pixel_values=pixels.to(self.model.device))).cpu()


def _load_part(kind, folder: Path):
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is not a folder of transformers: it has no config.json. Give the folder with all "
            "files of openai/clip-vit-base-patch32, or of another CLIP."
        )
    load: Callable = kind.from_pretrained
    try:
        return load(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{folder} could not be read as CLIP ({kind.__name__}: {reason}). It must hold config.json, "
            "the weights, preprocessor_config.json and the tokenizer's files: download all of them."
        ) from error


def _get_features(output) -> Tensor:
    """Return the projected embeddings: transformers 5 wraps what was a tensor before."""
    return output if isinstance(output, Tensor) else output.pooler_output
