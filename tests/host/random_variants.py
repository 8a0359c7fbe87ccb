"""Models of random weights for every WAN variant that ComfyUI knows, and the conditioning that each takes.

The host's own class tells the names and shapes, and the host's own detection loads the state dict, so that
nothing here says which class belongs to which variant but the name that a test expects.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor

DIM, FFN, RANK, TEXT_DIM, CLIP_DIM = 128, 128, 4, 4096, 1280
"""Width (one head), feed-forward width, rank of the LoRAs, widths of the text and of CLIP's image tokens."""
FRAMES, HEIGHT, WIDTH = 3, 4, 8
"""Sizes of the latents; WanDancer wants the tokens of a frame in a multiple of 8."""
_REPEATED = 100_000
"""Numbers drawn for a tensor; larger ones repeat them, because drawing dominated the time of the tests."""


@dataclass(frozen=True)
class Variant:
    """One WAN variant, and how a test makes a model and a run of it."""

    name: str
    kind: str
    """Class of the host's model_base that its detection must choose."""
    net: str
    """Module and class of the host's diffusion model, below comfy.ldm.wan."""
    model_type: str = "t2v"
    in_dim: int = 16
    latent_channels: int = 16
    blocks: int = 2
    options: dict = field(default_factory=dict)
    """Further arguments of the class."""
    config: dict = field(default_factory=dict)
    """Entries of the file's metadata that the detection needs, where the names do not tell."""
    conditioning: Callable[[], dict] = dict
    """Extra values of the CONDITIONING."""


def _draw(*shape: int, seed: int = 21) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _latents(channels: int = 16, frames: int = FRAMES) -> Tensor:
    return _draw(1, channels, frames, HEIGHT, WIDTH)


def _clip(seed: int = 22) -> SimpleNamespace:
    return SimpleNamespace(penultimate_hidden_states=_draw(1, 5, CLIP_DIM, seed=seed))


def _image() -> dict:
    mask = torch.ones(1, 1, FRAMES, HEIGHT, WIDTH)
    mask[:, :, 0] = 0
    return {"concat_latent_image": _latents(), "concat_mask": mask}


def _scail() -> dict:
    return {
        "clip_vision_output": _clip(),
        "reference_latents": [_latents(frames=1)],
        "pose_video_latent": _latents(),
    }


VARIANTS = [
    Variant("T2V", "WAN21", "model.WanModel"),
    Variant(
        "I2V 2.1",
        "WAN21",
        "model.WanModel",
        "i2v",
        36,
        conditioning=lambda: _image() | {"clip_vision_output": _clip()},
    ),
    Variant(
        "first and last frame 2.1",
        "WAN21",
        "model.WanModel",
        "i2v",
        36,
        options={"flf_pos_embed_token_number": 10},
        conditioning=lambda: _image() | {"clip_vision_output": _clip()},
    ),
    Variant("I2V 2.2", "WAN21", "model.WanModel", in_dim=36, conditioning=_image),
    Variant(
        "Fun control",
        "WAN21",
        "model.WanModel",
        "i2v",
        48,
        options={"in_dim_ref_conv": 16},
        conditioning=lambda: {
            "concat_latent_image": _latents(32),
            "clip_vision_output": _clip(),
            "reference_latents": [_latents(frames=1)],
        },
    ),
    Variant(
        "Fun control 2.2",
        "WAN21",
        "model.WanModel",
        in_dim=52,
        conditioning=lambda: {"concat_latent_image": _latents(32)},
    ),
    Variant(
        "Fun inpaint",
        "WAN21",
        "model.WanModel",
        "i2v",
        36,
        conditioning=lambda: _image() | {"clip_vision_output": _clip()},
    ),
    Variant(
        "Fun camera",
        "WAN21_Camera",
        "model.CameraWanModel",
        "camera",
        32,
        conditioning=lambda: {
            "concat_latent_image": _latents(),
            "clip_vision_output": _clip(),
            "camera_conditions": _draw(1, 24, FRAMES, 8 * HEIGHT, 8 * WIDTH),
        },
    ),
    Variant(
        "Fun camera 2.2",
        "WAN21_Camera",
        "model.CameraWanModel",
        "camera_2.2",
        36,
        conditioning=lambda: _image() | {"camera_conditions": _draw(1, 24, FRAMES, 8 * HEIGHT, 8 * WIDTH)},
    ),
    Variant(
        "VACE",
        "WAN21_Vace",
        "model.VaceWanModel",
        "vace",
        options={"vace_layers": 1, "vace_in_dim": 96},
        conditioning=lambda: {"vace_frames": [_latents(32)], "vace_strength": [0.8]},
    ),
    Variant("TI2V-5B", "WAN22", "model.WanModel", in_dim=48, latent_channels=48),
    Variant(
        "Animate",
        "WAN22_Animate",
        "model_animate.AnimateWanModel",
        "animate",
        36,
        blocks=5,
        conditioning=lambda: (
            _image()
            | {
                "clip_vision_output": _clip(),
                "pose_video_latent": _latents(frames=FRAMES - 1),
                "face_video_pixels": _draw(1, 3, 5, 8, 8),
            }
        ),
    ),
    Variant(
        "Animate-2",
        "WAN_Animate2",
        "model_animate2.WanAnimate2Model",
        "animate2",
        36,
        config={"model_type": "animate2"},
        conditioning=lambda: (
            _image() | {"clip_vision_output": _clip(), "pose_video_latent": _latents(frames=FRAMES - 1)}
        ),
    ),
    Variant(
        "S2V",
        "WAN22_S2V",
        "model.WanModel_S2V",
        "s2v",
        conditioning=lambda: {
            "audio_embed": _draw(1, 25, 1024, 4 * FRAMES),
            "reference_latents": [_latents(frames=1)],
            "control_video": _latents(),
        },
    ),
    Variant(
        "HuMo",
        "WAN21_HuMo",
        "model.HumoWanModel",
        "humo",
        conditioning=lambda: {
            "audio_embed": _draw(1, FRAMES, 8, 5, 1280),
            "reference_latents": [_latents(frames=1)],
        },
    ),
    Variant("SCAIL", "WAN21_SCAIL", "model.SCAILWanModel", "scail", 20, conditioning=_scail),
    Variant(
        "SCAIL-2",
        "WAN21_SCAIL2",
        "model.SCAIL2WanModel",
        "scail2",
        20,
        conditioning=lambda: (
            _scail()
            | {
                "driving_mask_28ch": _draw(1, FRAMES, 28, HEIGHT, WIDTH),
                "ref_mask_28ch": _draw(1, FRAMES + 1, 28, HEIGHT, WIDTH),
                "ref_mask_flag": True,
            }
        ),
    ),
    Variant(
        "WanDancer",
        "WAN22_WanDancer",
        "model_wandancer.WanDancerModel",
        "wandancer",
        36,
        conditioning=lambda: (
            _image()
            | {
                "clip_vision_output": _clip(),
                "clip_vision_output_ref": _clip(23),
                "audio_embed": _draw(1, 12, 35),
                "fps": 25.0,
            }
        ),
    ),
    Variant("FlowRVS", "WAN21_FlowRVS", "model.WanModel", config={"model_type": "flow_rvs"}),
    Variant("CausalAR", "WAN21_CausalAR", "ar_model.CausalWanModel", config={"causal_ar": True}),
]
BY_NAME = {variant.name: variant for variant in VARIANTS}


def make_state(variant: Variant) -> dict[str, Tensor]:
    """State dict of a variant in native names; activations stay near 1."""
    import importlib

    import comfy.ops

    module, name = variant.net.split(".")
    net_class = getattr(importlib.import_module(f"comfy.ldm.wan.{module}"), name)
    model_type = "t2v" if variant.kind in ("WAN21_FlowRVS", "WAN21_CausalAR") else variant.model_type
    net = net_class(
        model_type=model_type, in_dim=variant.in_dim, dim=DIM, ffn_dim=FFN, out_dim=variant.latent_channels,
        num_heads=1, num_layers=variant.blocks, cross_attn_norm=True, device="meta", dtype=torch.float32,
        operations=comfy.ops.disable_weight_init, **variant.options,
    )  # fmt: skip
    state = net.state_dict()
    return {key: _draw_weight(key, value.shape, place) for place, (key, value) in enumerate(state.items())}


def _draw_weight(name: str, shape: torch.Size, seed: int) -> Tensor:
    count, generator = shape.numel(), torch.Generator().manual_seed(seed)
    numbers = torch.randn(min(count, _REPEATED), generator=generator)
    numbers = numbers.repeat(-(-count // len(numbers)))[:count].reshape(shape)
    if len(shape) > 1 and not name.endswith(("modulation", "padding_tokens", "emb_pos")):
        return numbers / max(1, count // shape[0]) ** 0.5
    if name.endswith("weight") and len(shape) == 1:
        return 1 + 0.1 * numbers
    return 0.1 * numbers


def load(variant: Variant, state: dict[str, Tensor] | None = None):
    """MODEL of a variant by the host's own detection, with a shift of 1."""
    import comfy.sd
    from random_wan import with_shift

    # Older versions take no metadata, and know no variant that needs it.
    config = json.dumps({"transformer": variant.config})
    metadata = {"metadata": {"config": config}} if variant.config else {}
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(
            dict(state or make_state(variant)), model_options={"dtype": torch.float32}, **metadata
        )
    if variant.name == "Animate":
        # The net that reads motion from faces takes 512 px and seconds for each; no LoRA is on it.
        model.model.diffusion_model.motion_encoder.get_motion = lambda faces: _draw(len(faces), 512).to(faces)
    return with_shift(model, 1.0)


def make_lora(variant: Variant, roles, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Random factors (A, B) of all linears of these roles, by native name."""
    names = [
        f"blocks.{i}.{path}"
        for i in range(variant.blocks)
        for path in (
            *(f"{kind}.{x}" for kind in ("self_attn", "cross_attn") for x in "qkvo"),
            "ffn.0",
            "ffn.2",
        )
        if path.endswith(tuple(f".{role}" for role in roles if role in "qkvo")) or path in roles
    ]
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(RANK, DIM, generator=generator) / DIM**0.5,
            torch.randn(DIM, RANK, generator=generator) / RANK**0.5,
        )
        for name in names
    }


def sample(
    variant: Variant, model, steps: int, sampler: str = "euler", cfg: float = 1.0, **options
) -> Tensor:
    """Latents of a run on fixed noise, text and conditioning."""
    import comfy.sample
    import comfy.samplers

    latents = (1, variant.latent_channels, FRAMES, HEIGHT, WIDTH)
    noise, texts = _draw(*latents, seed=3), [_draw(1, 7, TEXT_DIM, seed=seed) for seed in (4, 5)]
    positive, negative = ([[text, variant.conditioning()]] for text in texts)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, noise, cfg, comfy.samplers.ksampler(sampler), sigmas, positive, negative,
            torch.zeros(latents), disable_pbar=True, seed=7, **options,
        )  # fmt: skip
