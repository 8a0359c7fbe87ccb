"""A LoRA's gradients through the graph's MODEL, and what they should be."""

import torch
from random_wan import BLOCKS, DIM, TRAINED_FFN, pack

SHAPE = (1, 16, 2, 4, 6)
TOKENS = 2 * 2 * 3


def question():
    """Noisy latents, their noise level, and a context."""
    generator = torch.Generator().manual_seed(7)
    noisy = torch.randn(SHAPE, generator=generator)
    context = torch.zeros(1, 16, 4096)
    context[:, :5] = torch.randn(1, 5, 4096, generator=generator)
    return noisy, torch.tensor([0.6]), context


def spec():
    return pack("smra_core.wan.spec").WanSpec("tiny", BLOCKS, DIM, TRAINED_FFN, 2)


def full_lora(of=None, seed=3):
    """Adapters on every linear of a model whose B is not zero, so that A, too, has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    lora = pack("smra_core.lora.adapter").init_lora(
        of or spec(), pack("smra_core.lora.plan").ALL_LAYERS, 2, generator
    )
    for pair in lora.values():
        pair.b.data.normal_(std=0.1, generator=generator)
    return lora


def injected(linears, lora):
    core = pack("smra_core.lora.adapter")
    return core.injected(linears, core.Injection(lora))


def gradients(loss, lora):
    loss.backward()
    return {name: (pair.a.grad, pair.b.grad) for name, pair in lora.items()}


def loss_of(velocity, tokens):
    return velocity.square().mean() + 0.1 * tokens.square().mean()


def reference(state):
    """Plain autograd through a plain copy of the net; weights in float32, every one resident."""
    from comfy.ldm.wan.model import WanModel
    from comfy.ops import disable_weight_init

    net = WanModel(
        model_type="t2v", dim=DIM, ffn_dim=TRAINED_FFN, num_heads=2, num_layers=BLOCKS, text_dim=4096,
        in_dim=16, dtype=torch.float32, device="cpu", operations=disable_weight_init,
    )  # fmt: skip
    net.load_state_dict({name: value.float() for name, value in state.items()})
    net.requires_grad_(False)
    noisy, sigma, context = question()
    lora, tokens = full_lora(), []
    net.blocks[0].register_forward_hook(lambda module, inputs, output: tokens.append(output))
    linears = {name: net.get_submodule(name) for name in spec().linear_names()}
    with pack("nodes.host.versions").training_mode(), injected(linears, lora):
        velocity = net(noisy, sigma * 1000, context=context, transformer_options={})
        return gradients(loss_of(velocity, tokens[0]), lora)


def trained(model, checks=()):
    """The gradients of one step inside of `training_denoiser`; each check sees denoiser and prediction."""
    noisy, sigma, context = question()
    lora = full_lora()
    with torch.inference_mode(), torch.inference_mode(False):  # as in a node
        with pack("nodes.host.denoiser").training_denoiser(model) as denoiser:
            with injected(denoiser.linears(), lora):
                prediction = denoiser.velocity(noisy, sigma, context, token_block=0)
                for check in checks:
                    check(denoiser, prediction)
                return gradients(loss_of(*prediction), lora)


def compare_slopes(total, lora, draw, step):
    """Slope of a scalar along random directions of a LoRA's factors, by autograd and by finite differences.

    `total` computes the scalar; `draw(*shape, seed)` gives the directions.
    """
    total().backward()
    parts = [part for pair in lora.values() for part in pair.parameters()]
    assert all(part.grad.any() for part in parts)
    ways = [draw(*part.shape, seed=8).double() for part in parts]
    slope = sum((part.grad * way).sum() for part, way in zip(parts, ways, strict=True)).item()

    def shifted(size):
        with torch.no_grad():
            for part, way in zip(parts, ways, strict=True):
                part += size * way
            value = total().item()
            for part, way in zip(parts, ways, strict=True):
                part -= size * way
        return value

    return slope, (shifted(step) - shifted(-step)) / (2 * step)


def errors(found, expected):
    """Relative error of each factor."""
    pairs = [pair for name in expected for pair in zip(found[name], expected[name], strict=True)]
    return [((a - b).norm() / b.norm()).item() for a, b in pairs]


def worst(found, expected):
    return max(errors(found, expected))


def reused_buffer(monkeypatch):
    """What offloading does: all casts of a size end up in one memory, which the next one overwrites."""
    import comfy.ops

    original, buffers = comfy.ops.cast_bias_weight, {}

    def cast(*args, **kwargs):
        weight, *others = original(*args, **kwargs)
        buffer = buffers.setdefault(weight.shape, torch.empty_like(weight))
        # Behind autograd's back, as a copy on another stream is.
        buffer.data.copy_(weight)
        return buffer.data, *others

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", cast)


def with_casting(model):
    for module in model.model.diffusion_model.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = True
    return model


def fingerprint(model):
    """Everything about a MODEL that training might change."""
    net = model.model
    forwards = {name: module.__dict__.get("forward") for name, module in net.named_modules()}
    own = {
        name: placed
        if placed is None or getattr(placed, "__func__", None) is not type(module).forward
        else None
        for (name, placed), module in zip(forwards.items(), net.modules(), strict=True)
    }
    weights = {name: (value.dtype, value.double().sum().item()) for name, value in net.state_dict().items()}
    options = repr(model.model_options)
    return own, weights, sorted(model.patches), dict(model.object_patches), net.manual_cast_dtype, options


def sampled(model):
    """One evaluation, the way a sampler does it."""
    import comfy.model_management as management

    noisy, sigma, context = question()
    with torch.inference_mode():
        management.load_models_gpu([model])
        return model.model.apply_model(noisy, sigma, c_crossattn=context).clone()
