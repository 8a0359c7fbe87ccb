"""Where a WAN 2.1 model lies on disk, what it is, and how to load its parts; nothing is ever downloaded."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..storage.content_hash import fingerprint_weights
from ..storage.weight_file import INDEX, read_shapes, read_weight_file
from ..wan.interfaces import TextEncoder
from ..wan.module_names import to_native_dit_name, to_native_vae_name
from ..wan.spec import LATENT_CHANNELS, WanSpec, find_spec
from .checkpoint_kind import build_dit_config, build_vae_config, prefix_of
from .checkpoint_weights import Shapes, check_native, fill_native, rename_to_native
from .diffusers_wan import DiffusersCodec, DiffusersDenoiser
from .umt5 import TOKENIZER_KEY, Umt5Text, check_umt5, load_umt5, tokenizer_folder

_AUTHORS_VAE, _AUTHORS_TEXT = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"


@dataclass(frozen=True)
class WanFiles:
    """The three parts of a WAN model: files in native names, or folders in diffusers' layout."""

    transformer: Path
    vae: Path
    text_encoder: Path | None
    """UMT5: a file, or a folder with its tokenizer; None for the miniature, whose words are hashed."""

    @cached_property
    def spec(self) -> WanSpec:
        """Sizes, read from the file's header or the folder's config alone."""
        config = _dit_config(self.transformer)
        heads = config["num_attention_heads"]
        return find_spec(config["num_layers"], heads * config["attention_head_dim"], config["ffn_dim"], heads)

    @cached_property
    def transformer_fingerprint(self) -> str:
        """Hash of the DiT's weights, wherever they lie."""
        return fingerprint_weights(self.transformer)

    @cached_property
    def vae_fingerprint(self) -> str:
        """Hash of the VAE's weights, wherever they lie."""
        return fingerprint_weights(self.vae)

    @cached_property
    def text_fingerprint(self) -> str:
        """Hash of the text encoder's weights, wherever they lie."""
        return "hashed words" if self.text_encoder is None else fingerprint_weights(self.text_encoder)

    def load_denoiser(
        self, dtype: torch.dtype, device: torch.device, checkpoint: bool = False
    ) -> DiffusersDenoiser:
        """The DiT in `dtype`; fp8 weights are brought back to it."""
        if self.transformer.is_dir():
            from diffusers import WanTransformer3DModel

            dit = _from_folder(WanTransformer3DModel, self.transformer, dtype)
        else:
            dit = _from_file(DIT, self.transformer, dtype)
        return DiffusersDenoiser(dit.to(device), checkpoint)

    def load_codec(self, dtype: torch.dtype, device: torch.device) -> DiffusersCodec:
        if self.vae.is_dir():
            from diffusers import AutoencoderKLWan

            vae = _from_folder(AutoencoderKLWan, self.vae, dtype)
        else:
            vae = _from_file(VAE, self.vae, dtype)
        return DiffusersCodec(vae.to(device))

    def load_text(self, dtype: torch.dtype, device: torch.device) -> TextEncoder:
        if self.text_encoder is None:
            from ..wan.hashed_text import HashedText

            return HashedText()
        if self.text_encoder.is_file():
            return load_umt5(self.text_encoder, dtype, device)
        from transformers import AutoTokenizer, UMT5EncoderModel

        inner, tokens = (_inside(self.text_encoder, part) for part in ("text_encoder", "tokenizer"))
        tokenizer = AutoTokenizer.from_pretrained(tokens, local_files_only=True)
        encoder = UMT5EncoderModel.from_pretrained(inner, torch_dtype=dtype, local_files_only=True)
        return Umt5Text(encoder.to(device), tokenizer)


def find_wan_files(model: str, vae: str | None = None, text_encoder: str | None = None) -> WanFiles:
    """Find the parts of a folder of diffusers or of WAN's authors, or of a native DiT file with its VAE and
    UMT5.

    Only headers are read, but each name and shape in them is accounted for. ValueError for what is missing,
    for damaged files, and for models that the method cannot train, which are named.
    """
    if Path(model).is_dir():
        files = _in_folder(Path(model), vae, text_encoder)
    else:
        files = _native_files(Path(model), vae, text_encoder)
    for part in (files.transformer, files.vae, *([files.text_encoder] if files.text_encoder else [])):
        if not part.exists():
            raise ValueError(
                f"{part} does not exist. Give a diffusers folder, or a native file with its parts."
            )
    _check(files)
    return files


def _in_folder(folder: Path, vae: str | None, text_encoder: str | None) -> WanFiles:
    """The parts in diffusers' layout, or in that of the repositories of WAN's authors."""
    dit, own_vae, own_text = folder / "transformer", folder / "vae", folder
    authors = [folder / f"diffusion_pytorch_model{ending}" for ending in (".safetensors", INDEX)]
    if not dit.exists() and (found := [path for path in authors if path.is_file()]):
        dit, own_vae, own_text = found[0], folder / _AUTHORS_VAE, folder / _AUTHORS_TEXT
    return WanFiles(dit, Path(vae) if vae else own_vae, Path(text_encoder) if text_encoder else own_text)


def _check(files: WanFiles) -> None:
    _dit_config(files.transformer)
    _vae_config(files.vae)
    for part, path in ((DIT, files.transformer), (VAE, files.vae)):
        if path.is_file():
            shapes = _native(part, read_shapes(path), path.name)
            check_native(part.empty(shapes, path.name), part.name, shapes, path.name)
    if files.text_encoder is not None and files.text_encoder.is_file():
        shapes = read_shapes(files.text_encoder)
        check_umt5(shapes, files.text_encoder.name)
        if TOKENIZER_KEY not in shapes:
            tokenizer_folder(files.text_encoder)


def _native_files(model: Path, vae: str | None, text_encoder: str | None) -> WanFiles:
    if not model.is_file():
        raise ValueError(
            f"{model} does not exist. Give 'miniature', a diffusers folder, or a .safetensors file."
        )
    if vae is None or text_encoder is None:
        build_dit_config(_native(DIT, read_shapes(model), model.name), model.name)
        raise ValueError(
            f"{model.name} holds the DiT alone. Give its VAE file with --vae (wan_2.1_vae.safetensors) and "
            "UMT5 with --text-encoder (umt5_xxl_fp16.safetensors, or a folder with its tokenizer)."
        )
    return WanFiles(model, Path(vae), Path(text_encoder))


def _inside(folder: Path, part: str) -> Path:
    return folder / part if (folder / part).is_dir() else folder


def _from_folder(kind: Any, path: Path, dtype: torch.dtype) -> Any:
    return kind.from_pretrained(path, torch_dtype=dtype, local_files_only=True)


@dataclass(frozen=True)
class NativePart:
    """How one part of WAN is made from a single file."""

    diffusers_class: str
    name: Callable[[str], str]
    """Native name of a weight that diffusers, or a file in its names, calls so."""
    config: Callable[[Shapes, str], dict[str, Any]]
    """Arguments of the class, from shapes by native name and the file's name."""

    def empty(self, shapes: Shapes, source: str) -> Any:
        """The model of these shapes on the meta device; what it computes by itself is there."""
        import diffusers
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            return getattr(diffusers, self.diffusers_class)(**self.config(shapes, source))


DIT = NativePart("WanTransformer3DModel", to_native_dit_name, build_dit_config)
VAE = NativePart("AutoencoderKLWan", to_native_vae_name, build_vae_config)


def _native(part: NativePart, values: dict[str, Any], source: str) -> dict[str, Any]:
    """Tensors or shapes of a file under native names, whatever stood before them."""
    return rename_to_native(values, part.name, source, prefix_of(values))


def _from_file(part: NativePart, path: Path, dtype: torch.dtype) -> Any:
    tensors = _native(part, read_weight_file(path).tensors, path.name)
    model = part.empty({name: tuple(value.shape) for name, value in tensors.items()}, path.name)
    # diffusers computes time, norms and modulations in float32, as WAN's authors do.
    precise = tuple(model._keep_in_fp32_modules or ())
    fill_native(model, part.name, tensors, dtype, path.name, precise)
    return model


def _dit_config(path: Path) -> dict[str, Any]:
    """Arguments of WanTransformer3DModel; ValueError when this is not a plain WAN text-to-video DiT."""
    if path.is_file():
        return build_dit_config(_native(DIT, read_shapes(path), path.name), path.name)
    config = _read_config(path)
    kind = config.get("_class_name", DIT.diffusers_class)
    if kind != DIT.diffusers_class:
        raise ValueError(
            f"{path} holds {kind}, such as VACE or Animate models have. The method needs WAN 2.1 "
            "text-to-video (Wan2.1-T2V-1.3B-Diffusers or -14B-Diffusers)."
        )
    if config["in_channels"] != LATENT_CHANNELS or config.get("image_dim"):
        raise ValueError(
            f"{path.name} takes {config['in_channels']} channels or images; it is an image-to-video or "
            f"control model. The method needs WAN 2.1 text-to-video ({LATENT_CHANNELS} channels)."
        )
    return config


def _vae_config(path: Path) -> dict[str, Any]:
    """Arguments of AutoencoderKLWan; ValueError when this is not WAN 2.1's VAE."""
    if path.is_file():
        return build_vae_config(_native(VAE, read_shapes(path), path.name), path.name)
    config = _read_config(path)
    if config.get("z_dim") != LATENT_CHANNELS:
        raise ValueError(
            f"{path.name} has {config.get('z_dim')} latent channels; WAN 2.1's VAE has {LATENT_CHANNELS}. "
            "Choose the VAE that came with Wan2.1-T2V."
        )
    return config


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} has no readable config.json ({error}). Download the model again."
        ) from error
