"""Where a WAN 2.1 model lies on disk, what it is, and how to load its parts; nothing is ever downloaded."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .backbone import TextEncoder
from .diffusers_wan import DiffusersCodec, DiffusersDenoiser, Umt5Text
from .encoders.weight_file import read_weight_file
from .file_identity import identity
from .wan import LATENT_CHANNELS, WanSpec, named_spec

MINIATURE = "miniature"
WEIGHTS = Path(__file__).parent / "miniature" / "weights"
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_HEAD_DIM = 128
"""Width of an attention head in every WAN."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class BackboneFiles:
    """The three parts of a WAN model: files in native names, or folders in diffusers' layout."""

    transformer: Path
    vae: Path
    text_encoder: Path | None
    """Folder of UMT5 with its tokenizer; None for the miniature, whose words are hashed."""

    def spec(self) -> WanSpec:
        """Sizes, read from the file's header or the folder's config alone."""
        config = _dit_config(self.transformer)
        heads = config["num_attention_heads"]
        dim = heads * config["attention_head_dim"]
        return named_spec(config["num_layers"], dim, config["ffn_dim"], heads)

    def fingerprint(self) -> dict[str, str]:
        """What identifies the weights of `transformer`, `vae` and `text`, wherever they lie."""
        text = "hashed words" if self.text_encoder is None else identity(self.text_encoder)
        return {"transformer": identity(self.transformer), "vae": identity(self.vae), "text": text}

    def load_denoiser(
        self, dtype: torch.dtype, device: torch.device, checkpoint: bool = False
    ) -> DiffusersDenoiser:
        from diffusers import WanTransformer3DModel

        dit = _load(WanTransformer3DModel, self.transformer, _dit_config(self.transformer), dtype)
        return DiffusersDenoiser(dit.to(device), checkpoint)

    def load_codec(self, dtype: torch.dtype, device: torch.device) -> DiffusersCodec:
        from diffusers import AutoencoderKLWan

        return DiffusersCodec(_load(AutoencoderKLWan, self.vae, _vae_config(self.vae), dtype).to(device))

    def load_text(self, dtype: torch.dtype, device: torch.device) -> TextEncoder:
        if self.text_encoder is None:
            from .miniature.hashed_text import HashedText

            return HashedText()
        from transformers import AutoTokenizer, UMT5EncoderModel

        inner, tokens = (_inside(self.text_encoder, part) for part in ("text_encoder", "tokenizer"))
        tokenizer = AutoTokenizer.from_pretrained(tokens, local_files_only=True)
        encoder = UMT5EncoderModel.from_pretrained(inner, torch_dtype=dtype, local_files_only=True)
        return Umt5Text(encoder.to(device), tokenizer)


MINIATURE_FILES = BackboneFiles(
    WEIGHTS / "wan_miniature_t2v.safetensors", WEIGHTS / "wan_miniature_vae.safetensors", None
)


def find_backbone(model: str, vae: str | None = None, text_encoder: str | None = None) -> BackboneFiles:
    """`miniature`, a diffusers folder, or a native DiT file with its VAE file and UMT5 folder.

    Only headers are read. ValueError for what is missing, and for models that the method cannot train: other
    than WAN 2.1's text-to-video, or quantised.
    """
    if model == MINIATURE:
        files = MINIATURE_FILES
    elif Path(model).is_dir():
        folder = Path(model)
        files = BackboneFiles(
            folder / "transformer",
            Path(vae) if vae else folder / "vae",
            Path(text_encoder) if text_encoder else folder,
        )
    else:
        files = _native_files(Path(model), vae, text_encoder)
    for part in (files.transformer, files.vae, *([files.text_encoder] if files.text_encoder else [])):
        if not part.exists():
            raise ValueError(
                f"{part} does not exist. Give a diffusers folder, or a native file with its parts."
            )
    _dit_config(files.transformer)
    _vae_config(files.vae)
    return files


def _native_files(model: Path, vae: str | None, text_encoder: str | None) -> BackboneFiles:
    if not model.is_file():
        raise ValueError(
            f"{model} does not exist. Give '{MINIATURE}', a diffusers folder, or a .safetensors file."
        )
    if vae is None or text_encoder is None:
        raise ValueError(
            f"{model.name} holds the DiT alone. Give its VAE file with --vae and the folder of UMT5 and "
            "its "
            "tokenizer with --text-encoder."
        )
    return BackboneFiles(model, Path(vae), Path(text_encoder))


def _inside(folder: Path, part: str) -> Path:
    return folder / part if (folder / part).is_dir() else folder


def _load(kind: Any, path: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    if path.is_dir():
        return kind.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
    # Without a config of its own diffusers would ask a hub for one.
    with _config_folder(kind.__name__, config) as folder:
        source = str(path) if path.suffix == ".safetensors" and not _prefix(_shapes(path)) else _bare(path)
        model = kind.from_single_file(source, config=folder, torch_dtype=dtype, local_files_only=True)
    return model


@contextmanager
def _config_folder(name: str, config: Mapping[str, Any]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({"_class_name": name, **config}))
        yield folder


def _bare(path: Path) -> dict[str, torch.Tensor]:
    tensors = read_weight_file(path).tensors
    prefix = _prefix({name: () for name in tensors})
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _dit_config(path: Path) -> dict[str, Any]:
    """Arguments of WanTransformer3DModel; ValueError when this is not a plain WAN text-to-video DiT."""
    config = _read_config(path) if path.is_dir() else _dit_config_of_shapes(_shapes(path), path)
    if config["in_channels"] != LATENT_CHANNELS or config.get("image_dim"):
        raise ValueError(
            f"{path.name} takes {config['in_channels']} channels or images; it is an image-to-video or "
            "control "
            f"model. The method needs WAN 2.1 text-to-video ({LATENT_CHANNELS} channels)."
        )
    return config


def _dit_config_of_shapes(shapes: Shapes, path: Path) -> dict[str, Any]:
    prefix = _prefix(shapes)
    bare = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    _refuse_other_models(bare, path)
    dim, channels = bare["patch_embedding.weight"][:2]
    blocks = 1 + max(int(name.split(".")[1]) for name in bare if name.startswith("blocks."))
    return {
        "num_attention_heads": dim // _HEAD_DIM,
        "attention_head_dim": _HEAD_DIM,
        "in_channels": channels,
        "out_channels": LATENT_CHANNELS,
        "ffn_dim": bare["blocks.0.ffn.0.weight"][0],
        "num_layers": blocks,
        "text_dim": bare["text_embedding.0.weight"][1],
        "freq_dim": bare["time_embedding.0.weight"][1],
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
    }


def _refuse_other_models(shapes: Shapes, path: Path) -> None:
    needed = ("patch_embedding.weight", "blocks.0.ffn.0.weight", "text_embedding.0.weight")
    missing = [name for name in needed if name not in shapes]
    if missing:
        raise ValueError(
            f"{path.name} is not a WAN DiT in native names: {missing[0]} is missing; it has "
            f"{sorted(shapes)[:3]}…"
        )
    for mark, kind in (("vace_blocks.", "VACE"), ("img_emb.", "image-to-video")):
        if any(name.startswith(mark) for name in shapes):
            raise ValueError(f"{path.name} is a {kind} model. The method needs WAN 2.1 text-to-video.")
    scaled = [name for name in shapes if name.endswith((".scale_weight", ".weight_scale", "scaled_fp8"))]
    if scaled:
        raise ValueError(
            f"{path.name} is quantised ({scaled[0]}). Give the 16-bit checkpoint here; the ComfyUI nodes "
            "take "
            "quantised ones."
        )


def _vae_config(path: Path) -> dict[str, Any]:
    """Arguments of AutoencoderKLWan; ValueError when this is not WAN 2.1's VAE."""
    if path.is_dir():
        config = _read_config(path)
        channels = config.get("z_dim")
    else:
        shapes = _shapes(path)
        if "decoder.head.0.gamma" not in shapes or "conv2.weight" not in shapes:
            raise ValueError(f"{path.name} is not a WAN VAE in native names; it has {sorted(shapes)[:3]}…")
        channels = shapes["conv2.weight"][0]
        config = {"base_dim": shapes["decoder.head.0.gamma"][0], "z_dim": channels}
    if channels != LATENT_CHANNELS:
        raise ValueError(
            f"{path.name} has {channels} latent channels; WAN 2.1's VAE has {LATENT_CHANNELS}. Choose the "
            "VAE that "
            "came with Wan2.1-T2V."
        )
    return config


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} has no readable config.json ({error}). Download the model again."
        ) from error


def _shapes(path: Path) -> Shapes:
    """Names and shapes in a weight file, without reading safetensors' weights."""
    if path.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_weight_file(path).tensors.items()}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}). Download it again."
        ) from error


def _prefix(shapes: Mapping[str, Any]) -> str:
    return next((p for p in _PREFIXES if any(name.startswith(p) for name in shapes)), "")
