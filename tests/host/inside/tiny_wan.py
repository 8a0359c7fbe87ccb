"""A WAN of two blocks with random weights, LoRAs for it, and runs on it through the host's own sampler."""

import json

import torch

BLOCKS, DIM, FFN, TEXT_DIM, RANK = 2, 256, 512, 4096, 4
STEPS, SHIFT, GUIDANCE = 10, 1.0, 5.0
LATENT = (1, 16, 2, 8, 8)
SUBJECT_LAYERS, MOTION_LAYERS = ("q", "k", "ffn.0"), ("v", "o", "ffn.0", "ffn.2")


def state_dict(seed: int = 0) -> dict:
    """Weights under WAN's native names, of a size that keeps activations near 1."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    sizes = dict(dim=DIM, ffn_dim=FFN, num_heads=DIM // 128, num_layers=BLOCKS, text_dim=TEXT_DIM)
    with torch.device("meta"):
        shapes = WanModel(model_type="t2v", operations=comfy.ops.disable_weight_init, **sizes).state_dict()
    generator = torch.Generator().manual_seed(seed)

    def values(name, shape):
        if "norm" in name and name.endswith("weight"):
            return torch.ones(shape)
        fan_in = shape[1:].numel() if len(shape) > 1 else DIM
        return torch.randn(shape, generator=generator) / fan_in**0.5

    return {name: values(name, tensor.shape) for name, tensor in shapes.items()}


def block_linears() -> list[str]:
    paths = [f"{kind}.{role}" for kind in ("self_attn", "cross_attn") for role in "qkvo"]
    return [f"blocks.{i}.{path}" for i in range(BLOCKS) for path in (*paths, "ffn.0", "ffn.2")]


def quantized(state: dict, kind: str) -> dict:
    """The same checkpoint with the linears of its blocks in one of the host's formats."""
    state = dict(state)
    for name in block_linears():
        weight = state[f"{name}.weight"]
        largest = {"float8_e4m3fn": 448.0, "int8_tensorwise": 127.0}[kind]
        scale = weight.abs().max() / largest
        packed = weight / scale
        if kind == "int8_tensorwise":
            state[f"{name}.weight"] = packed.round().to(torch.int8)
        else:
            state[f"{name}.weight"] = packed.to(torch.float8_e4m3fn)
        state[f"{name}.weight_scale"] = scale
        text = json.dumps({"format": kind}).encode()
        state[f"{name}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    return state


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
    contexts = [torch.randn(1, 12, TEXT_DIM, generator=generator) for _ in range(2)]
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
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor, x, t, *args, **kwargs):
        late = float(t.max()) <= late_below
        kept = {}
        for factors, before, after in loras:
            for name, (a, b) in factors.items():
                weight = executor.class_obj.get_submodule("diffusion_model." + name).weight
                kept.setdefault(name, (weight, weight.data.clone()))
                weight.data.add_((after if late else before) * (b @ a))
        try:
            return executor(x, t, *args, **kwargs)
        finally:
            for weight, before in kept.values():
                weight.data.copy_(before)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "reference", wrapper)
    return clone


def difference(first, second) -> float:
    return (first - second).abs().max().item()


def leftovers(model) -> list[str]:
    """Modules whose instance still has a `forward` of its own."""
    return [name for name, module in model.model.named_modules() if "forward" in module.__dict__]
