"""Write the standalone code's outputs on the miniature: python tests/core/golden/make_miniature_golden.py

ComfyUI's own loaders must give the same outputs (tests/host/inside/test_miniature_files.py).
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from smra_core.miniature.model_files import MINIATURE_FILES
from smra_core.wan.hashed_text import HashedText
from smra_core.wan.latents import denormalize
from smra_core.wan.spec import TIMESTEPS

GOLDEN = Path(__file__).with_name("miniature_golden.safetensors")
CAPTION = "a red striped square moving left on a navy background"


@torch.no_grad()
def golden() -> dict[str, torch.Tensor]:
    """Inputs, the DiT's velocity, and the VAE's pixels in [-1, 1], in float32."""
    cpu = torch.device("cpu")
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(8))
    sigma, context = torch.tensor([0.7]), HashedText().encode([CAPTION])
    denoiser = MINIATURE_FILES.load_denoiser(torch.float32, cpu)
    codec = MINIATURE_FILES.load_codec(torch.float32, cpu)
    return {
        "latents": latents,
        "timestep": sigma * TIMESTEPS,
        "context": context,
        "velocity": denoiser.velocity(latents, sigma, context).velocity,
        "raw_latents": denormalize(latents),
        "pixels": codec.decode(latents),
    }


if __name__ == "__main__":
    save_file({name: value.contiguous() for name, value in golden().items()}, GOLDEN)
