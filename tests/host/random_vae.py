"""WAN's two VAEs with random weights, and a node of the tests in the server that gives out Wan 2.2's.

The host loads that one in its published width alone, with 700 million weights.
"""

import inspect
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file


def load_vae(folder):
    """VAE of WAN 2.1 of the host, random; its file lies in the folder."""
    import comfy.sd
    from comfy.ldm.wan.vae import WanVAE

    # Hosts up to 0.3.64 take no width but the published one.
    dim = 8 if "decoder.head.0.gamma" in inspect.getsource(comfy.sd.VAE.__init__) else 96
    return _load_random_vae(WanVAE(dim=dim, z_dim=16, temperal_downsample=[False, True, True]), folder)


def load_vae_of_wan22(folder):
    """VAE of Wan 2.2 of the host, random and narrow; its file lies in the folder."""
    from comfy.ldm.wan import vae2_2

    narrow = partial(vae2_2.WanVAE, dec_dim=8)
    net = narrow(dim=8, z_dim=48, temperal_downsample=[False, True, True])
    with patch.object(vae2_2, "WanVAE", lambda dim, **options: narrow(dim=8, **options)):
        return _load_random_vae(net, folder)


def _load_random_vae(net, folder):
    import comfy.sd
    import comfy.utils

    # The host's layers are made without initial values.
    generator = torch.Generator()
    state = {
        name: torch.randn(value.shape, generator=generator.manual_seed(place))
        / max(1, value[0].numel()) ** 0.5
        if value.ndim > 3 and not name.endswith("gamma")
        else torch.ones_like(value)
        for place, (name, value) in enumerate(net.state_dict().items())
    }
    file = folder / "vae.safetensors"
    save_file(state, file)
    with torch.inference_mode():
        return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(file)))


class RandomVAEOfWan22:
    """Node that gives out a VAE."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("VAE",), "load", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        import folder_paths

        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        return (load_vae_of_wan22(folder),)


NODE_CLASS_MAPPINGS = {"RandomVAEOfWan22": RandomVAEOfWan22}
