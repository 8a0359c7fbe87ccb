"""WAN models of random weights in native names, small enough for a test, loaded by the host's own loaders."""

import importlib
import inspect
import json

import torch
from safetensors.torch import save_file

DIM, FFN, BLOCKS = 256, 128, 2


def pack(module):
    """A module of the pack, which conftest.py imported as the host does."""
    return importlib.import_module(f"smrabooth_pack.{module}")


def dit_state(blocks=BLOCKS, seed=0, channels=16):
    """State dict of a DiT of two heads; weights small enough that activations stay near 1."""
    from comfy.ldm.wan.model import WanModel
    from comfy.ops import disable_weight_init

    model = WanModel(
        model_type="t2v", dim=DIM, ffn_dim=FFN, num_heads=DIM // 128, num_layers=blocks, text_dim=4096,
        in_dim=channels, dtype=torch.float32, device="cpu", operations=disable_weight_init,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in model.state_dict().items():
        if value.ndim > 1 and not name.endswith("modulation"):
            state[name] = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        elif "norm" in name and name.endswith("weight"):
            state[name] = 1 + 0.1 * torch.randn(value.shape, generator=generator)
        else:
            state[name] = 0.1 * torch.randn(value.shape, generator=generator)
    return state


def quantized(state, kind):
    """The linears of all blocks in one of the host's quantized formats, as its files store them."""
    stored = dict(state)
    for name, weight in state.items():
        if not (name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2):
            continue
        bits, scale = _codes(weight, kind)
        base = name.removesuffix(".weight")
        stored[name], stored[f"{base}.weight_scale"] = bits, scale
        stored[f"{base}.comfy_quant"] = torch.tensor(list(json.dumps({"format": kind}).encode())).to(
            torch.uint8
        )
    return stored


def _codes(weight, kind):
    if kind == "float8_e4m3fn":
        scale = weight.abs().max() / 448
        return (weight / scale).to(torch.float8_e4m3fn), scale
    scale = weight.abs().max() / 127
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


def load_dit(folder, state, **options):
    """MODEL of the host, read from a file under inference mode, as in a running graph."""
    import comfy.sd

    file = folder / "dit.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(file), model_options=options)


def load_vae(folder):
    """VAE of the host, random; its file lies in the folder."""
    import comfy.sd
    import comfy.utils
    from comfy.ldm.wan.vae import WanVAE

    # Hosts up to 0.3.64 take no width but the published one.
    dim = 8 if "decoder.head.0.gamma" in inspect.getsource(comfy.sd.VAE.__init__) else 96
    # The host's layers are made without initial values.
    net, generator = WanVAE(dim=dim, z_dim=16, temperal_downsample=[False, True, True]), torch.Generator()
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
