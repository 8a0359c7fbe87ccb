"""WAN models of random weights in native names, small enough for a test, LoRAs for them, and runs on them.

What needs ComfyUI imports it inside the function: the tests over HTTP use this file without it.
"""

import importlib
import json

import torch
from safetensors.torch import save_file
from torch import Tensor

BLOCKS, DIM, FFN, TRAINED_FFN, TEXT_DIM, RANK = 2, 256, 512, 128, 4096, 4
"""Sizes of the DiT; the one that tests train has a narrower feed-forward net."""
STEPS, SHIFT, GUIDANCE = 10, 1.0, 5.0
LATENT = (1, 16, 2, 8, 8)
TEXT_TOKENS = 12
SUBJECT_LAYERS, MOTION_LAYERS = ("q", "k", "ffn.0"), ("v", "o", "ffn.0", "ffn.2")
ATTENTION = [f"{kind}.{role}" for kind in ("self_attn", "cross_attn") for role in "qkvo"]


def pack(module):
    """Import a module of the pack, which conftest.py imported as the host does."""
    return importlib.import_module(f"smrabooth_pack.{module}")


def dit_state(blocks=None, ffn=None, seed=0, channels=16, latents=16) -> dict[str, Tensor]:
    """State dict of a DiT of latents of so many channels, with heads of 128; activations stay near 1."""
    blocks, ffn, generator = blocks or BLOCKS, ffn or FFN, torch.Generator().manual_seed(seed)
    linears = {
        "text_embedding.0": (DIM, TEXT_DIM),
        "text_embedding.2": (DIM, DIM),
        "time_embedding.0": (DIM, 256),
        "time_embedding.2": (DIM, DIM),
        "time_projection.1": (6 * DIM, DIM),
        "head.head": (4 * latents, DIM),
    }
    for i in range(blocks):
        linears |= {f"blocks.{i}.{path}": (DIM, DIM) for path in ATTENTION}
        linears |= {f"blocks.{i}.ffn.0": (ffn, DIM), f"blocks.{i}.ffn.2": (DIM, ffn)}
    state = {}
    for name, (rows, columns) in linears.items():
        state[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(rows, generator=generator)
    patches = torch.randn(DIM, channels, 1, 2, 2, generator=generator) / (4 * channels) ** 0.5
    state |= {"patch_embedding.weight": patches, "patch_embedding.bias": torch.zeros(DIM)}
    state["head.modulation"] = 0.1 * torch.randn(1, 2, DIM, generator=generator)
    for i in range(blocks):
        norms = [f"{kind}.norm_{x}" for kind in ("self_attn", "cross_attn") for x in "qk"]
        for name in (*norms, "norm3"):
            state[f"blocks.{i}.{name}.weight"] = 1 + 0.1 * torch.randn(DIM, generator=generator)
        state[f"blocks.{i}.norm3.bias"] = 0.1 * torch.randn(DIM, generator=generator)
        state[f"blocks.{i}.modulation"] = 0.1 * torch.randn(1, 6, DIM, generator=generator)
    return state


def add_image_inputs(state: dict[str, Tensor], reference: bool = False) -> dict[str, Tensor]:
    """The DiT with what image-to-video models of 2.1 have besides: inputs of CLIP's features, and of Fun
    Control's reference image.
    """
    shapes = {"img_emb.proj.1": (1280, 1280), "img_emb.proj.3": (DIM, 1280)}
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    shapes |= {f"blocks.{i}.cross_attn.{role}_img": (DIM, DIM) for i in blocks for role in "kv"}
    generator, made = torch.Generator().manual_seed(9), dict(state)
    for name, (rows, columns) in shapes.items():
        made[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        made[f"{name}.bias"] = torch.zeros(rows)
    for name, width in (("img_emb.proj.0", 1280), ("img_emb.proj.4", DIM)):
        made |= {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}
    made |= {f"blocks.{i}.cross_attn.norm_k_img.weight": torch.ones(DIM) for i in blocks}
    if reference:
        made["ref_conv.weight"] = torch.randn(DIM, 16, 2, 2, generator=generator) / 8
        made["ref_conv.bias"] = torch.zeros(DIM)
    return made


def add_vace(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The DiT with one VACE block beside its blocks."""
    generator = torch.Generator().manual_seed(10)
    beside = {f"vace_{name}": value.clone() for name, value in state.items() if name.startswith("blocks.0.")}
    for name in ("before_proj", "after_proj"):
        beside[f"vace_blocks.0.{name}.weight"] = torch.randn(DIM, DIM, generator=generator) / DIM**0.5
        beside[f"vace_blocks.0.{name}.bias"] = torch.zeros(DIM)
    patches = torch.randn(DIM, 96, 1, 2, 2, generator=generator) / (4 * 96) ** 0.5
    beside |= {"vace_patch_embedding.weight": patches, "vace_patch_embedding.bias": torch.zeros(DIM)}
    return state | beside


def lora(blocks: int, prefix: str, middle: str, seed: int = 1) -> dict[str, Tensor]:
    """LoRA file of all attention linears; `prefix` and `middle` make a dialect: DiffSynth has none and
    `.default`.
    """
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name in (f"{prefix}blocks.{i}.{path}" for i in range(blocks) for path in ATTENTION):
        tensors[f"{name}.lora_A{middle}.weight"] = torch.randn(RANK, DIM, generator=generator) / DIM**0.5
        tensors[f"{name}.lora_B{middle}.weight"] = torch.randn(DIM, RANK, generator=generator) / RANK**0.5
    return tensors


def block_linears() -> list[str]:
    """Native names of the linears of all blocks."""
    return [f"blocks.{i}.{path}" for i in range(BLOCKS) for path in (*ATTENTION, "ffn.0", "ffn.2")]


def quantized(state: dict, kind: str) -> dict:
    """The same checkpoint with the linears of its blocks stored in one of the host's formats."""
    largest = {"float8_e4m3fn": 448.0, "int8_tensorwise": 127.0}[kind]
    stored = dict(state)
    for name, weight in state.items():
        if not (name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2):
            continue
        base, scale = name.removesuffix(".weight"), weight.abs().max() / largest
        codes = weight / scale
        if kind == "int8_tensorwise":
            stored[name] = codes.round().clamp(-127, 127).to(torch.int8)
        else:
            stored[name] = codes.to(torch.float8_e4m3fn)
        text = json.dumps({"format": kind}).encode()
        stored[f"{base}.weight_scale"] = scale
        stored[f"{base}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    return stored


def load(state: dict, dtype=None):
    """MODEL by the host's own loader, in inference mode as in a graph, with a shift of 1."""
    import comfy.sd

    options = {} if dtype is None else {"dtype": dtype}
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(dict(state), model_options=options)
    return with_shift(model, SHIFT)


def with_shift(model, shift: float):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, shift)[0]


def lora_tensors(layers, seed: int, size: float = 0.6, names=None) -> dict[str, tuple]:
    """Random factors (A, B) by native linear name."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [name for name in names or block_linears() if name.endswith(tuple(f".{x}" for x in layers))]

    def pair(name):
        rows, columns = (FFN, DIM) if name.endswith("ffn.0") else (DIM, DIM)
        columns = FFN if name.endswith("ffn.2") else columns
        a = torch.randn(RANK, columns, generator=generator) / columns**0.5
        return a, size * torch.randn(rows, RANK, generator=generator) / RANK**0.5

    return {name: pair(name) for name in chosen}


def save_lora(path, layers, seed: int) -> None:
    """Write a LoRA of random factors under ComfyUI's names."""
    named = {}
    for name, (a, b) in lora_tensors(layers, seed).items():
        named[f"diffusion_model.{name}.lora_A.weight"] = a.contiguous()
        named[f"diffusion_model.{name}.lora_B.weight"] = b.contiguous()
    save_file(named, path)


def sample(model, sampler="euler", steps=STEPS, cfg=GUIDANCE, scheduler="simple", seed=7, **options):
    """Latents of a run on fixed noise and text."""
    noise = torch.randn(LATENT, generator=torch.Generator().manual_seed(3))
    return _sampled(model, noise, torch.zeros(LATENT), sampler, steps, cfg, scheduler, seed, options)


def sample_on(model, latents, steps=STEPS, **options):
    """What a second KSampler (Advanced) makes of the first one's latents, without noise of its own."""
    options = {"disable_noise": True, **options}
    return _sampled(model, torch.zeros(LATENT), latents, "euler", steps, GUIDANCE, "simple", 7, options)


def _sampled(model, noise, latents, sampler, steps, cfg, scheduler, seed, options):
    import comfy.sample

    generator = torch.Generator().manual_seed(3)
    torch.randn(LATENT, generator=generator)
    contexts = [torch.randn(1, TEXT_TOKENS, TEXT_DIM, generator=generator) for _ in range(2)]
    positive, negative = ([[context, {}]] for context in contexts)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, cfg, sampler, scheduler, positive, negative, latents, disable_pbar=True,
            seed=seed, **options,
        )  # fmt: skip


def reference(model, loras, late_below: float):
    """A clone whose evaluations use W + s B A, written into the weights around each of them.

    `loras` are (factors, strength above, strength at and below `late_below`). Nothing of the pack is used.
    """
    changes = [
        ({f"{name}.weight": b @ a for name, (a, b) in factors.items()}, before, after)
        for factors, before, after in loras
    ]
    return changed(model, changes, late_below)


def changed(model, changes, late_below: float):
    """A clone whose evaluations use other parameters, as in `reference`.

    `changes` are (change of each parameter, strength above, strength at and below `late_below`).
    """
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor, x, t, *args, **kwargs):
        late = float(t.max()) <= late_below
        kept = {}
        for parameters, before, after in changes:
            for name, change in parameters.items():
                parameter = executor.class_obj.get_parameter("diffusion_model." + name)
                kept.setdefault(name, (parameter, parameter.data.clone()))
                parameter.data.add_((after if late else before) * change)
        try:
            return executor(x, t, *args, **kwargs)
        finally:
            for parameter, before in kept.values():
                parameter.data.copy_(before)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "reference", wrapper)
    return clone


def difference(first, second) -> float:
    return (first - second).abs().max().item()


def leftovers(model) -> list[str]:
    """Modules whose instance still has a `forward` of its own."""
    return [name for name, module in model.model.named_modules() if "forward" in module.__dict__]


def load_dit(folder, state, **options):
    """MODEL of the host, read from a file under inference mode, as in a running graph."""
    import comfy.sd

    file = folder / "dit.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(file), model_options=options)
