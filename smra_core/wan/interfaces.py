"""What the method needs from a WAN model, whoever holds it: diffusers here, ComfyUI in nodes/host_wan.py."""

from typing import NamedTuple, Protocol

from torch import Tensor, nn

from .spec import WanSpec


class Prediction(NamedTuple):
    """One evaluation of the DiT."""

    velocity: Tensor
    """`B 16 f h w`."""
    tokens: Tensor | None
    """`B L D`: the residual stream after the tapped block, in t,y,x order; None without a tap."""


class Denoiser(Protocol):
    """A frozen WAN DiT."""

    spec: WanSpec

    def linears(self) -> dict[str, nn.Module]:
        """Block linears by native name (`blocks.N.self_attn.q`); adapters replace their `forward`."""
        ...

    def velocity(
        self, noisy_latents: Tensor, sigma: Tensor, context: Tensor, token_block: int | None = None
    ) -> Prediction:
        """Predict the velocity of latents `B 16 f h w` at sigma `B`, given text context `B T 4096`.

        `token_block` is the block whose output tokens are wanted (0: the first). Gradients flow to adapters
        and to the latents; blocks are checkpointed when the model was asked to be.
        """
        ...


class VideoCodec(Protocol):
    """A frozen WAN video VAE, in model space (latents whitened by wan.LATENT_MEAN and LATENT_STD)."""

    def encode(self, pixels: Tensor) -> Tensor:
        """`B 3 F H W` in [-1, 1] with F = 4n+1 to `B 16 f h w`, without gradient (the posterior's mean)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """`B 16 f h w` to `B 3 F H W`, clamped to [-1, 1], without gradient."""
        ...


class TextEncoder(Protocol):
    """Captions to context."""

    def encode(self, prompts: list[str]) -> Tensor:
        """`B T 4096`; positions after the caption's last token are zero."""
        ...
