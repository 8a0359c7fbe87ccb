"""The shipped miniature through ComfyUI's own loader nodes, held to what the headless code makes of it."""

import inspect
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CORE = Path(__file__).parents[3]
WEIGHTS = CORE / "smra_core" / "miniature" / "weights"
GOLDEN = CORE / "tests" / "core" / "golden" / "miniature_golden.safetensors"


@pytest.fixture(scope="module")
def expected():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def loaders():
    import folder_paths

    import nodes

    for kind in ("diffusion_models", "vae"):
        folder_paths.add_model_folder_path(kind, str(WEIGHTS))
    return nodes


@torch.no_grad()
def test_the_unet_loader_takes_the_dit(loaders, expected):
    (model,) = loaders.UNETLoader().load_unet("wan_miniature_t2v.safetensors", "default")
    dit = model.model.diffusion_model.float()
    velocity = dit(expected["latents"], expected["timestep"], expected["context"])
    torch.testing.assert_close(velocity, expected["velocity"], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_vae_loader_takes_the_vae(loaders, expected):
    import comfy.sd

    if "decoder.head.0.gamma" not in inspect.getsource(comfy.sd.VAE.__init__):
        pytest.skip("This host's own VAE loader knows the published width alone.")
    (vae,) = loaders.VAELoader().load_vae("wan_miniature_vae.safetensors")
    pixels = vae.first_stage_model.float().decode(expected["raw_latents"]).clamp(-1, 1)
    torch.testing.assert_close(pixels, expected["pixels"], atol=1e-4, rtol=1e-4)
