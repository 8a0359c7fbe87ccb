"""Objectives of the bench's subject arms that the product does not have."""

import logging
from collections.abc import Mapping
from typing import NamedTuple

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
from ...wan.flow_matching import (
    add_noise,
    sample_training_sigma,
    velocity_target,
    velocity_weight,
    x0_from_velocity,
)
from ...wan.interfaces import Denoiser
from ..recipe.stage import cast_where_fast
from ..weight_paths import DINOV2_FILE
from ..world.random_clips import draw_views
from ..world.scenes import draw_scene, render
from .word_attention import WordAttention, compute_word_loss, find_words

log = logging.getLogger("smrabooth")
PICTURES, FIT_STEPS, FIT_BATCH, FIT_RATE, FIT_NOISE = 600, 400, 32, 1e-3, 0.2
"""Pictures of random sprites that a projector is fitted on, steps, pictures of a step, learning rate, and the
highest noise level.
"""
STILL_STEPS, STILL_GAIN = 10, 0.01
"""A projector stands still when the mean cosine of so many steps is at most so much above that of as many
before.
"""
KNOWN_CLIPS, CLIPS_OF_A_STEP = 64, 2
"""Clips of the world that the model knows, and those of them that a step sees."""


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


class StoppedObjective(ArmObjective):
    """SuRA through a projector that is trained until its cosine stands still, and then held."""

    def __init__(self, *arguments):
        """Build an ArmObjective of the arguments."""
        super().__init__(*arguments)
        self.cosines: list[float] = []
        self.held = False

    def trainables(self) -> dict[str, nn.Parameter]:
        """Return the projector's parameters, or nothing once it is held."""
        return {} if self.held else super().trainables()

    def losses(
        self,
        denoiser: Denoiser,
        batch: SubjectSample,
        sigma: Tensor,
        noise: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the losses of an ArmObjective; a projector that stood still until this step is held."""
        if not self.held and has_stopped_rising(self.cosines):
            self.held = True
            self.projector.requires_grad_(False)
            log.info("projector held after %d steps, cosine %.3f", len(self.cosines), self.cosines[-1])
        losses = super().losses(denoiser, batch, sigma, noise, generator)
        self.cosines.append(-losses["sura"].mean().item())
        return losses


def has_stopped_rising(cosines: list[float]) -> bool:
    """Return whether the cosines of a projector, one a step, stand still (see STILL_STEPS)."""
    if len(cosines) < 2 * STILL_STEPS:
        return False
    late, early = cosines[-STILL_STEPS:], cosines[-2 * STILL_STEPS : -STILL_STEPS]
    return sum(late) - sum(early) <= STILL_STEPS * STILL_GAIN


class KnownClips(NamedTuple):
    """Clips that the model knows, with their captions."""

    latents: Tensor
    """Latents `N C f h w`."""
    context: Tensor
    """Text context `N T 4096`."""


def encode_known_clips(backend: StandaloneBackend) -> KnownClips:
    """Encode clips of the world's known words; the cache keeps them."""
    generator = make_generator(0, "known clips")
    scenes = [draw_scene(generator) for _ in range(KNOWN_CLIPS)]
    contexts = backend.encode_captions([scene.prompt for scene in scenes])
    latents = backend.encode_clips([render(scene).frames for scene in scenes])
    return KnownClips(torch.stack(latents), torch.stack([contexts[scene.prompt] for scene in scenes]))


class MotionBoothObjective(ArmObjective):
    """What MotionBooth (Wu et al., 2024) trains a subject with besides the region loss: `words`, its
    cross-attention loss, and `clips`, the velocity loss of known clips (its video preservation loss).
    """

    def __init__(
        self,
        *arguments,
        blocks: nn.ModuleList,
        words: tuple[str, ...],
        weights: Mapping[str, float],
        clips: KnownClips | None,
    ):
        """Build an ArmObjective of the arguments; `words` are the subject's in the caption, and `weights` are
        those of both losses, of which one at 0 is not computed.
        """
        super().__init__(*arguments)
        self.attention, self.words, self.clips = WordAttention(blocks), words, clips
        self.weights = {**self.weights, **weights}

    def losses(
        self,
        denoiser: Denoiser,
        batch: SubjectSample,
        sigma: Tensor,
        noise: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the losses of an ArmObjective, and those of MotionBooth, each `B`."""
        with self.attention.collect():
            losses = super().losses(denoiser, batch, sigma, noise, generator)
        if self.weights["words"]:
            share = self.attention.measure(find_words(batch.context, self.words))
            losses["words"] = compute_word_loss(share, batch.mask_latent)
        if self.clips is not None:
            # One number for all samples, as the loop takes a number for each.
            losses["clips"] = self._measure_clips(denoiser, self.clips, generator).mean().expand(len(sigma))
        return losses

    def _measure_clips(self, denoiser: Denoiser, clips: KnownClips, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(clips.latents), (CLIPS_OF_A_STEP,), generator=generator)
        sigma = sample_training_sigma(CLIPS_OF_A_STEP, generator, self.shift, self.noise_range)
        latents, context = clips.latents[chosen], clips.context[chosen]
        noise = torch.randn(latents.shape, generator=generator)
        velocity = denoiser.velocity(add_noise(latents, noise, sigma), sigma, context).velocity
        error = (velocity - velocity_target(latents, noise)) ** 2
        return error.flatten(1).mean(1) * velocity_weight(sigma, self.shift, self.noise_range)


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
