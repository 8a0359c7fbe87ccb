"""Objectives of the bench's subject arms that the product does not have."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...decoding.wan_decoder import WanVideoDecoder
from ...encoders.dinov2 import load_dinov2, prepare_pictures
from ...standalone.backend import StandaloneBackend
from ...training.random_stream import make_generator
from ...training.subject import extract_patch_features
from ...training.sura import (
    SubjectObjective,
    SubjectSample,
    SubjectSettings,
    make_projector,
    region_loss,
    sura_loss,
)
from ...wan.flow_matching import add_noise, velocity_target, velocity_weight, x0_from_velocity
from ...wan.interfaces import Denoiser
from ..recipe.stage import cast_where_fast
from ..weight_paths import DINOV2_FILE
from ..world.random_clips import draw_views

PICTURES, FIT_STEPS, FIT_BATCH, FIT_RATE, FIT_NOISE = 600, 400, 32, 1e-3, 0.2
"""Pictures of random sprites that a projector is fitted on, steps, pictures of a step, learning rate, and the
highest noise level.
"""


class ArmObjective(SubjectObjective):
    """The product's objective with a weight of the region loss, and with SuRA above a noise level only."""

    def __init__(
        self, settings: SubjectSettings, dim: int, feature_dim: int, seed: int, region: float, above: float
    ):
        """Build the product's objective; `region` is the region loss's weight, `above` a noise level."""
        super().__init__(settings, dim, feature_dim, seed)
        self.weights, self.above = {**self.weights, "region": region}, above

    def losses(
        self,
        denoiser: Denoiser,
        batch: SubjectSample,
        sigma: Tensor,
        noise: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the product's losses, with that of SuRA at 0 up to the noise level."""
        losses = super().losses(denoiser, batch, sigma, noise, generator)
        if "sura" in losses:
            losses["sura"] = losses["sura"] * (sigma > self.above)
        return losses


class HeldObjective(ArmObjective):
    """SuRA through a projector that is not trained."""

    def __init__(self, *arguments, projector: nn.Sequential):
        """Build an ArmObjective of the arguments with this projector."""
        super().__init__(*arguments)
        self.projector = projector

    def trainables(self) -> dict[str, nn.Parameter]:
        """Return nothing, as the projector is held."""
        return {}


class DecodedObjective(ArmObjective):
    """Region loss, and the cosine of DINOv2's features of the decoded prediction to the picture's."""

    def __init__(self, *arguments, decoder: WanVideoDecoder):
        """Build an ArmObjective of the arguments with this decoder."""
        super().__init__(*arguments)
        self.decoder, self.vit = decoder, load_dinov2(DINOV2_FILE).vit

    def trainables(self) -> dict[str, nn.Parameter]:
        """Return nothing, as there is no projector."""
        return {}

    def losses(
        self,
        denoiser: Denoiser,
        batch: SubjectSample,
        sigma: Tensor,
        noise: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the losses `region` and `sura`, each `B`."""
        noisy = add_noise(batch.latents, noise, sigma)
        velocity = denoiser.velocity(noisy, sigma, batch.context).velocity
        region = region_loss(velocity, velocity_target(batch.latents, noise), batch.mask_latent)
        region = region * velocity_weight(sigma, self.shift, self.noise_range)
        x0 = x0_from_velocity(noisy, velocity, sigma)
        with cast_where_fast():  # float32 takes a CPU seconds a step
            pixels = self.decoder.finish(x0)[:, :, 0]
        pictures = (pixels.float().clamp(-1, 1) + 1) / 2
        tokens = self.vit.forward_features(prepare_pictures(pictures))
        features = tokens[:, self.vit.num_prefix_tokens :]
        return {"region": region, "sura": sura_loss(features, batch.features) * (sigma > self.above)}


def fit_projector(backend: StandaloneBackend, denoiser: Denoiser, settings: SubjectSettings) -> nn.Sequential:
    """Fit a projector on the frozen model's tokens at low noise, of pictures of random sprites without a
    caption; the cache keeps it.
    """
    generator = make_generator(0, "fitted projector")
    features = load_dinov2(DINOV2_FILE).vit.num_features
    projector = make_projector(backend.spec.dim, features, settings.projector_width, generator)
    key = {"fitted on": PICTURES, "steps": FIT_STEPS, "noise": FIT_NOISE, "block": settings.align_block}

    def compute() -> dict[str, Tensor]:
        _fit(projector, backend, denoiser, settings.align_block, generator)
        return {name: value.detach() for name, value in projector.state_dict().items()}

    fitted: Mapping[str, Tensor] = backend.cache.get_or_compute("projector", key, compute)
    projector.load_state_dict(fitted)
    return projector.requires_grad_(False)


def _fit(
    projector: nn.Sequential,
    backend: StandaloneBackend,
    denoiser: Denoiser,
    block: int,
    generator: torch.Generator,
) -> None:
    pictures = [view.frames for _ in range(PICTURES) for view in draw_views(generator, 1)]
    latents = torch.stack(backend.encode_clips(pictures))
    features = torch.stack(extract_patch_features(backend, [clip[0] for clip in pictures], DINOV2_FILE))
    context = backend.encode_captions([""])[""]
    optimizer = torch.optim.AdamW(projector.parameters(), lr=FIT_RATE)
    for _ in range(FIT_STEPS):
        chosen = torch.randint(PICTURES, (FIT_BATCH,), generator=generator)
        sigma = FIT_NOISE * torch.rand(FIT_BATCH, generator=generator)
        noise = torch.randn(latents[chosen].shape, generator=generator)
        with torch.no_grad():
            noisy = add_noise(latents[chosen], noise, sigma)
            tokens = denoiser.velocity(noisy, sigma, context.expand(FIT_BATCH, -1, -1), block).tokens
        loss = sura_loss(projector(tokens), features[chosen]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
