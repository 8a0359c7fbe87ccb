"""Random models and inputs of any size on a device; no file is read and nothing is downloaded."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from smra_core.decoding.tiny_decoder import TinyDecoder
from smra_core.decoding.wan_decoder import WanVideoDecoder
from smra_core.encoders.sea_raft import SeaRaft
from smra_core.standalone.diffusers_wan import DiffusersDenoiser
from smra_core.training.mora import MotionSample
from smra_core.training.sura import SubjectSample
from smra_core.wan.spec import TEXT_DIM, latent_frames
from tests.benchmarks.gpu.sizes import Sizes


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Make modules on a device and in a dtype at once, so that no larger copy of them exists first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def make_denoiser(spec, dtype: torch.dtype, device: torch.device, checkpoint: bool = True):
    """Make a frozen DiT; with `checkpoint`, blocks are recomputed in the backward pass as in training."""
    return DiffusersDenoiser(make_dit(spec, dtype, device), checkpoint)


def make_dit(spec, dtype: torch.dtype, device: torch.device) -> WanTransformer3DModel:
    with made_on(device, dtype):
        return WanTransformer3DModel(
            num_layers=spec.blocks, ffn_dim=spec.ffn, num_attention_heads=spec.heads,
            attention_head_dim=spec.dim // spec.heads,
        ).to(dtype)  # fmt: skip


def make_vae(sizes: Sizes, device: torch.device) -> AutoencoderKLWan:
    with made_on(device, sizes.dtype):
        return AutoencoderKLWan(base_dim=sizes.vae_width).to(sizes.dtype).requires_grad_(False)


def make_decoder(sizes: Sizes, device: torch.device, recompute: bool = False) -> WanVideoDecoder:
    """Make the decoder of a random VAE; the encoder is freed."""
    return WanVideoDecoder.of(make_vae(sizes, device), recompute)


def make_tiny_decoder(sizes: Sizes, device: torch.device) -> TinyDecoder:
    with device:
        return TinyDecoder(sizes.tiny_widths).to(sizes.dtype)


def make_flow_net(sizes: Sizes, device: torch.device) -> SeaRaft:
    with device:
        net = SeaRaft(sizes.flow).freeze()
    net.flow_head[2].weight.mul_(0.1)  # untrained it would see motions of a thousand pixels
    return net


def make_context(sizes: Sizes) -> torch.Tensor:
    return torch.randn(sizes.text, TEXT_DIM)


def make_motion_sample(sizes: Sizes, shrink: int = 1, latents: int | None = None) -> MotionSample:
    """Make an encoded clip in host memory; `shrink` divides the size of its flow."""
    settings = sizes.motion
    shape = list(sizes.spec.latents.latent_shape(settings.frames, settings.width, settings.height))
    shape[1] = latents or latent_frames(settings.frames)
    pairs = 4 * (shape[1] - 1)
    flow = torch.randn(pairs, 2, settings.height // shrink, settings.width // shrink)
    return MotionSample("clip", torch.randn(shape), make_context(sizes), flow)


def make_subject_sample(sizes: Sizes) -> SubjectSample:
    """Make an encoded picture in host memory, with features of DINOv2's first size."""
    settings = sizes.subject
    latents = sizes.spec.latents
    shape = latents.latent_shape(1, settings.width, settings.height)
    features = next(iter(sizes.dinov2.values())).width
    tokens = latents.count_tokens(1, settings.width, settings.height)
    return SubjectSample(
        "picture",
        torch.randn(shape),
        make_context(sizes),
        torch.ones(1, *shape[1:]),
        torch.randn(tokens, features),
    )
