"""The files of a WAN model on disk: find them, check them, and load its parts. Nothing is downloaded."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..storage.content_hash import fingerprint_weights
from ..storage.weight_file import INDEX, read_shapes
from ..wan.interfaces import TextEncoder
from ..wan.spec import LATENT_SPACES, LATENTS_21, LatentSpace, WanSpec, find_latents, is_linear_weight
from .checkpoint_kind import check_channels
from .checkpoint_weights import Shapes
from .diffusers_wan import DiffusersCodec, DiffusersDenoiser, read_spec
from .native_part import DIT, VAE
from .umt5 import TOKENIZER_KEY, Umt5Text, check_umt5, find_tokenizer_folder, load_umt5
from .waiting_blocks import Placement

_AUTHORS_TEXT = "models_t5_umt5-xxl-enc-bf16.pth"
_TRANSFORMERS_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json")
"""Files of which transformers needs one."""


@dataclass(frozen=True)
class WanFiles:
    """The three parts of a WAN model: files in native names, or folders in diffusers' layout.

    Headers, configurations and fingerprints are read when first asked for, and only once.
    """

    transformer: Path
    vae: Path
    text_encoder: Path | None
    """UMT5: a file, or a folder with its tokenizer; None for the miniature, whose words are hashed."""

    @cached_property
    def spec(self) -> WanSpec:
        """Sizes of the DiT, read from the file's header or the folder's config.json alone."""
        return read_spec(self.transformer_arguments)

    @cached_property
    def transformer_shapes(self) -> Shapes:
        """Shapes in the DiT's file by native name; ValueError when the file is unreadable."""
        return DIT.read_shapes(self.transformer)

    @cached_property
    def vae_shapes(self) -> Shapes:
        """Shapes in the VAE's file by native name; ValueError when the file is unreadable."""
        return VAE.read_shapes(self.vae)

    @cached_property
    def transformer_arguments(self) -> dict[str, Any]:
        """Arguments of WanTransformer3DModel; ValueError unless this is a WAN text-to-video DiT."""
        if self.transformer.is_file():
            return DIT.config(self.transformer_shapes, self.transformer.name)
        return _read_dit_config(self.transformer)

    @cached_property
    def vae_arguments(self) -> dict[str, Any]:
        """Arguments of AutoencoderKLWan; ValueError unless this is one of WAN's VAEs."""
        if self.vae.is_file():
            return VAE.config(self.vae_shapes, self.vae.name)
        return _read_vae_config(self.vae)

    @cached_property
    def transformer_fingerprint(self) -> str:
        """Hash of the DiT's weights; it does not depend on where the file lies."""
        return fingerprint_weights(self.transformer)

    @cached_property
    def vae_fingerprint(self) -> str:
        """Hash of the VAE's weights; it does not depend on where the file lies."""
        return fingerprint_weights(self.vae)

    @cached_property
    def text_fingerprint(self) -> str:
        """Hash of the text encoder's weights; it does not depend on where the file lies."""
        return "hashed words" if self.text_encoder is None else fingerprint_weights(self.text_encoder)

    def check(self) -> None:
        """Raise ValueError unless every name and shape in headers and configurations is as it must be.

        A text encoder that is a file without a tokenizer inside needs one beside it, and one that is a folder
        needs both in it.
        """
        _check_pair(self.spec.latents, self.vae_arguments["z_dim"], self.vae.name)
        if self.transformer.is_file():
            DIT.check_shapes(self.transformer_shapes, self.transformer.name)
        if self.vae.is_file():
            VAE.check_shapes(self.vae_shapes, self.vae.name)
        if self.text_encoder is not None and self.text_encoder.is_dir():
            _check_text_folder(self.text_encoder)
        if self.text_encoder is not None and self.text_encoder.is_file():
            shapes = read_shapes(self.text_encoder)
            check_umt5(shapes, self.text_encoder.name)
            if TOKENIZER_KEY not in shapes:
                find_tokenizer_folder(self.text_encoder)

    def load_denoiser(
        self,
        dtype: torch.dtype,
        device: torch.device,
        checkpoint: bool = False,
        placement: Placement | None = None,
    ) -> DiffusersDenoiser:
        """Load the DiT in `dtype`, fp8 weights too.

        With `checkpoint`, its blocks are recomputed in the backward pass, which saves memory. `placement`
        says where the weights are, and in which form; without it, on the device in `dtype`.
        """
        placement = placement or Placement()
        if self.transformer.is_dir():
            from diffusers import WanTransformer3DModel

            dit = _load_folder(WanTransformer3DModel, self.transformer, dtype)
        else:
            dit = DIT.load(self.transformer, dtype, is_linear_weight if placement.keeps_form else None)
        return DiffusersDenoiser(dit, checkpoint, device, placement.resident)

    @cached_property
    def share_of_8_bits(self) -> float:
        """Share of the values in the linears of the DiT's blocks that are of 8 bits and can stay so: 1 for a
        file of fp8 or INT8. It is read from the file's header alone.
        """
        if self.transformer.is_dir():
            return 0.0
        value_bytes, sizes = DIT.read_value_bytes(self.transformer), self.transformer_shapes
        counts = {name: math.prod(sizes[name]) for name in sizes if is_linear_weight(name)}
        kept = sum(count for name, count in counts.items() if value_bytes[name] == 1)
        return kept / sum(counts.values())

    def load_codec(self, dtype: torch.dtype, device: torch.device) -> DiffusersCodec:
        """Load the video VAE in `dtype`."""
        if self.vae.is_dir():
            from diffusers import AutoencoderKLWan

            vae = _load_folder(AutoencoderKLWan, self.vae, dtype)
        else:
            vae = VAE.load(self.vae, dtype)
        return DiffusersCodec(vae.to(device))

    def load_text(self, dtype: torch.dtype, device: torch.device) -> TextEncoder:
        """Load the text encoder in `dtype`, with its tokenizer."""
        if self.text_encoder is None:
            from ..wan.hashed_text import HashedText

            return HashedText()
        if self.text_encoder.is_file():
            return load_umt5(self.text_encoder, dtype, device)
        from transformers import AutoTokenizer, UMT5EncoderModel

        inner, tokens = (_choose_subfolder(self.text_encoder, part) for part in ("text_encoder", "tokenizer"))
        tokenizer = AutoTokenizer.from_pretrained(tokens, local_files_only=True)
        encoder = UMT5EncoderModel.from_pretrained(inner, torch_dtype=dtype, local_files_only=True)
        return Umt5Text(encoder.to(device), tokenizer)


def find_wan_files(model: str, vae: str | None = None, text_encoder: str | None = None) -> WanFiles:
    """Find and check the parts of a WAN model.

    `model` is a folder of diffusers or of WAN's authors, whose parts `vae` and `text_encoder` may replace, or
    a native DiT file, which needs both. Only headers are read, and every name and shape in them is checked.
    Raises ValueError when a part is missing or damaged, and when the method cannot train the model; the
    message says which model it is.
    """
    if Path(model).is_dir():
        files = _find_in_folder(Path(model), vae, text_encoder)
    else:
        files = _find_native_files(Path(model), vae, text_encoder)
    for part in (files.transformer, files.vae, *([files.text_encoder] if files.text_encoder else [])):
        if not part.exists():
            raise ValueError(
                f"{part} does not exist. Give a diffusers folder, or a native file with --vae and "
                "--text-encoder."
            )
    files.check()
    return files


def _find_in_folder(folder: Path, vae: str | None, text_encoder: str | None) -> WanFiles:
    """Return the parts of a folder in diffusers' layout, or in that of the repositories of WAN's authors."""
    dit, own_vae, own_text = folder / "transformer", folder / "vae", folder
    authors = [folder / f"diffusion_pytorch_model{ending}" for ending in (".safetensors", INDEX)]
    if not dit.exists() and (found := [path for path in authors if path.is_file()]):
        dit, own_vae, own_text = found[0], _find_authors_vae(folder), folder / _AUTHORS_TEXT
    return WanFiles(dit, Path(vae) if vae else own_vae, Path(text_encoder) if text_encoder else own_text)


def _find_authors_vae(folder: Path) -> Path:
    """Return the VAE in a folder of WAN's authors: WAN 2.1's, or that of TI2V-5B."""
    files = [folder / space.authors_vae_file for space in LATENT_SPACES.values()]
    return next((file for file in files if file.is_file()), files[0])


def _check_pair(latents: LatentSpace, channels: int, vae: str) -> None:
    """Raise ValueError unless the VAE's latents are those that the DiT denoises."""
    if channels != latents.channels:
        raise ValueError(
            f"{vae} is the VAE of {find_latents(channels).name}, with latents of {channels} channels; this "
            f"model needs {latents.name}'s, with {latents.channels}. Give --vae {latents.vae_file}."
        )


def _find_native_files(model: Path, vae: str | None, text_encoder: str | None) -> WanFiles:
    if not model.is_file():
        raise ValueError(
            f"{model} does not exist. Give 'miniature', a diffusers folder, or a .safetensors file."
        )
    if vae is None or text_encoder is None:
        # A file that is no DiT is refused as what it is.
        latents = read_spec(DIT.config(DIT.read_shapes(model), model.name)).latents
        raise ValueError(
            f"{model.name} holds the DiT alone. Give its VAE file with --vae ({latents.vae_file}) and "
            "UMT5 with --text-encoder (umt5_xxl_fp16.safetensors, or a folder with its tokenizer)."
        )
    return WanFiles(model, Path(vae), Path(text_encoder))


def _check_text_folder(folder: Path) -> None:
    """Raise ValueError unless a folder holds a text encoder and its tokenizer in transformers' files."""
    inner, tokens = (_choose_subfolder(folder, part) for part in ("text_encoder", "tokenizer"))
    for place, what, files in (
        (inner, "text encoder", ("config.json",)),
        (inner, "text encoder", _TRANSFORMERS_WEIGHTS),
        (tokens, "tokenizer", _TOKENIZER_FILES),
    ):
        if not any((place / file).is_file() for file in files):
            raise ValueError(
                f"{place} holds no {what}: it has none of {', '.join(files)}. Give --text-encoder a file "
                "such as umt5_xxl_fp16.safetensors, or a folder with text_encoder/ and tokenizer/."
            )


def _choose_subfolder(folder: Path, part: str) -> Path:
    """Return the subfolder named after a part, or the folder itself where there is none."""
    return folder / part if (folder / part).is_dir() else folder


def _load_folder(kind: Any, path: Path, dtype: torch.dtype) -> Any:
    return kind.from_pretrained(path, torch_dtype=dtype, local_files_only=True)


def _read_dit_config(path: Path) -> dict[str, Any]:
    """Read the config.json of a folder; ValueError unless it is that of a WAN DiT that makes videos from
    text.
    """
    config = {"out_channels": LATENTS_21.channels} | _read_config(path)
    kind = config.get("_class_name", DIT.diffusers_class)
    if kind != DIT.diffusers_class:
        raise ValueError(
            f"{path} holds {kind}, such as VACE or Animate models have. From files the method needs a model "
            "that makes videos from text or from a first frame alone (such as Wan2.1-T2V-1.3B-Diffusers or "
            "Wan2.2-I2V-A14B-Diffusers). In ComfyUI VACE is trained, too."
        )
    check_channels(config["in_channels"], config["out_channels"], path.name)
    if config.get("image_dim"):
        raise ValueError(
            f"{path.name} takes CLIP's features of an image, as I2V 2.1 does. It is trained in ComfyUI "
            "alone; from files train an image-to-video expert of Wan 2.2, which takes the image without them."
        )
    return config


def _read_vae_config(path: Path) -> dict[str, Any]:
    """Read the config.json of a folder; ValueError unless it is that of one of WAN's VAEs."""
    config = _read_config(path)
    if config.get("z_dim") not in LATENT_SPACES:
        raise ValueError(
            f"{path.name} has {config.get('z_dim')} latent channels; WAN's VAEs have "
            f"{' or '.join(map(str, LATENT_SPACES))}. Choose the VAE that came with the model."
        )
    return config


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} has no readable config.json ({error}). Download the model again."
        ) from error
