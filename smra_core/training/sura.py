"""Subject representation alignment (paper section "SuRA"): the loss of the subject LoRA.

`L = L_region + lambda L_SuRA`. The DiT's tokens after its first block go through a trainable MLP and are
aligned with DINOv2's patch features of the reference image; the velocity loss is taken only inside the
subject's mask.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.plan import SUBJECT, SparsePlan
from ..wan.condition import NO_INPUTS, ExtraInputs
from ..wan.flow_matching import add_noise, velocity_target, velocity_weight
from ..wan.interfaces import Denoiser
from ..wan.noise_range import NOISE_RANGE_HELP, WHOLE, NoiseRange
from ..wan.settings import COUNT, NOT_NEGATIVE, POSITIVE, check_limits, declare_setting
from ..wan.spec import LATENTS_21
from .gradient_share import SHARE
from .mask_grid import average_inside
from .preservation import PRESERVE, PRESERVE_HELP, BaseModel, preservation_loss
from .random_stream import make_generator


@dataclass(frozen=True)
class SubjectSettings:
    """Settings of the subject LoRA: the paper's values, and our choices where the paper is silent."""

    plan: SparsePlan = declare_setting(
        SUBJECT,
        "Layers that get the LoRA: the name of a plan, or roles such as q,k,ffn.0. 'subject' is the "
        "paper's: it leaves room for a motion LoRA.",
    )
    rank: int = declare_setting(
        32, "Rank of the LoRA. Higher holds more detail and makes a larger file.", COUNT
    )
    width: int = declare_setting(
        512,
        "Width that pictures are resized and cropped to, a multiple of 16 (of 32 for TI2V-5B). Higher "
        "needs more memory.",
    )
    height: int = declare_setting(
        512,
        "Height that pictures are resized and cropped to, a multiple of 16 (of 32 for TI2V-5B). Higher "
        "needs more memory.",
    )
    sura_weight: float = declare_setting(
        0.05,
        "Weight of the DINOv2 alignment loss (SuRA; lambda in the paper). Higher keeps the subject's "
        "identity more strictly; 0 turns it off, and DINOv2 is then not needed.",
        NOT_NEGATIVE,
    )
    sura_share: float = declare_setting(
        0.0,
        "Share of a step that the alignment has at every noise level, in place of its weight: 0.3 is 30 % "
        "of the LoRA's gradient in the layers that it reaches. Higher follows DINOv2 more strictly; it takes "
        "one more backward pass. 0 keeps the weight (paper).",
        SHARE,
        newer=True,
    )
    align_block: int = declare_setting(
        0,
        "Block whose output is aligned with DINOv2. Higher lets more blocks learn from the alignment; the "
        "paper's is 0, the authors' code uses 2.",
        NOT_NEGATIVE,
    )
    projector_width: int = declare_setting(
        2048,
        "Width of the small network between the model and DINOv2, used in training only. Higher makes the "
        "alignment easier and asks less of the LoRA.",
        COUNT,
    )
    weighted_velocity: bool = declare_setting(
        True,
        "Weight the velocity loss by noise level, most in the middle, as the authors train. Off, all "
        "levels count the same.",
    )
    shift: float = declare_setting(
        1.0,
        "Shift of the noise levels in training. Higher trains more at high noise, on layout rather than "
        "detail.",
        POSITIVE,
    )
    noise_range: NoiseRange = declare_setting(WHOLE, NOISE_RANGE_HELP, newer=True)
    preserve_weight: float = declare_setting(0.0, PRESERVE_HELP, NOT_NEGATIVE, newer=True)

    def __post_init__(self):
        check_limits(self)
        LATENTS_21.check_size(self.width, self.height)


class SubjectSample(NamedTuple):
    """Encoded reference image or clip, or a batch of them with the axis `B` first."""

    name: str
    latents: Tensor
    """Latents `C f h w` in model space; an image has one."""
    context: Tensor
    """Text context `T 4096`."""
    mask_latent: Tensor
    """Subject mask `1 f h w` on the latent grid, 0 or 1."""
    features: Tensor
    """DINOv2's patch features `N D`, one per DiT token, in t,y,x order."""
    extra: ExtraInputs = NO_INPUTS
    """What a variant of WAN takes besides (see wan.condition)."""


def region_loss(velocity: Tensor, target: Tensor, mask_latent: Tensor) -> Tensor:
    """Return L_region `B`: the squared velocity error `B C f h w`, averaged inside the mask `B 1 f h w`."""
    return average_inside((velocity - target) ** 2, mask_latent)


def sura_loss(projected: Tensor, features: Tensor) -> Tensor:
    """Return L_SuRA `B` in [-1, 1]: minus the cosine of each projected token to the encoder's feature,
    averaged over all tokens. Both are `B L D`; ValueError if their shapes differ.
    """
    if projected.shape != features.shape:
        raise ValueError(
            f"{projected.shape[1]} tokens of width {projected.shape[2]} cannot be aligned with "
            f"{features.shape[1]} DINOv2 patches of width {features.shape[2]}. Features must come from "
            "the same image size as the latents."
        )
    return -F.cosine_similarity(projected, features, dim=-1).mean(1)


def make_projector(dim: int, feature_dim: int, width: int, generator: torch.Generator) -> nn.Sequential:
    """Make the trainable MLP h_phi: three linears with SiLU between them (like REPA's), float32; its weights
    are drawn from the generator alone.
    """
    sizes = [dim, width, width, feature_dim]
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        linear = nn.Linear(inputs, outputs)
        nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5), generator=generator)
        nn.init.uniform_(linear.bias, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class SubjectObjective:
    """Objective of region loss and SuRA; the projector is trained along with the LoRA, whose file does not
    hold it.
    """

    memory_advice = "Lower batch_size, or the width and height."

    def __init__(self, settings: SubjectSettings, dim: int, feature_dim: int, seed: int = 0):
        """Build the objective for tokens of width `dim` and features of width `feature_dim`."""
        self.settings, self.shift, self.noise_range = settings, settings.shift, settings.noise_range
        self.weights: Mapping[str, float] = {
            "region": 1.0, "sura": settings.sura_weight, PRESERVE: settings.preserve_weight
        }  # fmt: skip
        self.base: BaseModel | None = None
        self.shares: Mapping[str, float] = {"sura": settings.sura_share}
        # Another stream than the LoRA's, which would begin with the same numbers.
        generator = make_generator(seed, "projector")
        self.projector = make_projector(dim, feature_dim, settings.projector_width, generator)

    def trainables(self) -> dict[str, nn.Parameter]:
        """Return the projector's parameters by name; none if sura_weight is 0."""
        return dict(self.projector.named_parameters()) if self.settings.sura_weight else {}

    def losses(
        self,
        denoiser: Denoiser,
        batch: SubjectSample,
        sigma: Tensor,
        noise: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the losses `region`, `sura` and `preserve`, each `B`, of a collated batch; the last two if
        their weights are not 0.
        """
        aligned = self.settings.sura_weight != 0
        token_block = self.settings.align_block if aligned else None
        noisy = add_noise(batch.latents, noise, sigma)
        velocity, tokens = denoiser.velocity(noisy, sigma, batch.context, token_block, batch.extra)
        region = region_loss(velocity, velocity_target(batch.latents, noise), batch.mask_latent)
        if self.settings.weighted_velocity:
            region = region * velocity_weight(sigma, self.shift, self.noise_range)
        losses = {"region": region}
        if aligned:
            assert tokens is not None  # because a block was asked for
            losses["sura"] = sura_loss(self.projector(tokens.to(noise.dtype)), batch.features)
        if self.settings.preserve_weight:
            assert self.base is not None  # because the training loop sets it
            kept = self.base.predict(noisy, sigma, batch.context, batch.extra).velocity
            losses[PRESERVE] = preservation_loss(velocity, kept, 1 - batch.mask_latent)
        return losses
