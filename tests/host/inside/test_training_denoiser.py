"""The graph's MODEL as a denoiser: its gradients, and that nothing of it is left changed."""

import gc
import itertools
import os

import pytest
import torch
from training_models import BLOCKS, DIM, FFN, dit_state, load_dit, pack, quantised

SHAPE = (1, 16, 2, 4, 6)
TOKENS = 2 * 2 * 3


@pytest.fixture(scope="module")
def core():
    """The parts of the core that the tests use."""
    lora, wan = pack("smra_core.lora"), pack("smra_core.wan")
    sparse = pack("smra_core.sparse")

    class Core:
        Injection, injected, init_lora = (
            lora.Injection,
            staticmethod(lora.injected),
            staticmethod(lora.init_lora),
        )
        spec = wan.WanSpec("tiny", BLOCKS, DIM, FFN, 2)
        all_layers = sparse.ALL_LAYERS

    return Core


@pytest.fixture(scope="module")
def host_wan():
    return pack("nodes.host_wan")


@pytest.fixture(scope="module")
def state():
    return dit_state()


@pytest.fixture
def question():
    generator = torch.Generator().manual_seed(7)
    noisy = torch.randn(SHAPE, generator=generator)
    context = torch.zeros(1, 16, 4096)
    context[:, :5] = torch.randn(1, 5, 4096, generator=generator)
    return noisy, torch.tensor([0.6]), context


def full_lora(core, seed=3):
    """Adapters on every linear whose B is not zero, so that A, too, has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    lora = core.init_lora(core.spec, core.all_layers, 2, generator)
    for pair in lora.values():
        pair.b.data.normal_(std=0.1, generator=generator)
    return lora


def gradients(loss, lora):
    loss.backward()
    return {name: (pair.a.grad, pair.b.grad) for name, pair in lora.items()}


def loss_of(velocity, tokens):
    return velocity.square().mean() + 0.1 * tokens.square().mean()


def reference(core, state, question):
    """Plain autograd through a plain copy of the net; weights in float32, every one resident."""
    from comfy.ldm.wan.model import WanModel
    from comfy.ops import disable_weight_init

    net = WanModel(
        model_type="t2v", dim=DIM, ffn_dim=FFN, num_heads=2, num_layers=BLOCKS, text_dim=4096,
        in_dim=16, dtype=torch.float32, device="cpu", operations=disable_weight_init,
    )  # fmt: skip
    net.load_state_dict({name: value.float() for name, value in state.items()})
    net.requires_grad_(False)
    noisy, sigma, context = question
    lora, tokens = full_lora(core), []
    net.blocks[0].register_forward_hook(lambda module, inputs, output: tokens.append(output))
    linears = {name: net.get_submodule(name) for name in core.spec.linear_names()}
    with in_training(), core.injected(linears, core.Injection(lora)):
        velocity = net(noisy, sigma * 1000, context=context, transformer_options={})
        return gradients(loss_of(velocity, tokens[0]), lora)


class in_training:
    def __enter__(self):
        import comfy.model_management as management

        management.in_training = True

    def __exit__(self, *error):
        import comfy.model_management as management

        management.in_training = False


def trained(core, host_wan, model, question, checks=()):
    noisy, sigma, context = question
    lora = full_lora(core)
    with torch.inference_mode(), torch.inference_mode(False):  # as in a node
        with host_wan.training_denoiser(model) as denoiser:
            with core.injected(denoiser.linears(), core.Injection(lora)):
                prediction = denoiser.velocity(noisy, sigma, context, tap=0)
                for check in checks:
                    check(denoiser, prediction)
                return gradients(loss_of(*prediction), lora)


def worst(found, expected):
    """Largest relative error over all factors."""
    pairs = [pair for name in expected for pair in zip(found[name], expected[name], strict=True)]
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def dequantised(model, state):
    """The state that the host computes with, whatever it stores."""
    known = dict(model.model.diffusion_model.named_parameters())
    quantised_weights = {name: weight for name, weight in known.items() if hasattr(weight, "_layout_cls")}
    plain = {name: known[name].float() for name in state if name not in quantised_weights}
    return plain | {name: weight.dequantize().float() for name, weight in quantised_weights.items()}


def test_gradients_are_those_of_plain_autograd(core, host_wan, state, question, tmp_path):
    model = load_dit(tmp_path, state)
    assert next(model.model.diffusion_model.parameters()).is_inference()
    seen = []
    checks = [lambda denoiser, prediction: seen.append(prediction)]
    found = trained(core, host_wan, model, question, checks)
    assert worst(found, reference(core, state, question)) < 1e-4
    assert seen[0].velocity.shape == SHAPE and seen[0].tokens.shape == (1, TOKENS, DIM)


@pytest.mark.parametrize("kind", ["stored fp8", "stored bf16", "float8_e4m3fn", "int8_tensorwise"])
def test_quantised_weights_give_the_gradients_of_what_they_stand_for(
    core, host_wan, state, question, tmp_path, kind
):
    if kind == "stored fp8":
        model = load_dit(tmp_path, state, dtype=torch.float8_e4m3fn)
    elif kind == "stored bf16":
        model = load_dit(tmp_path, {name: value.bfloat16() for name, value in state.items()})
    else:
        model = load_dit(tmp_path, quantised(state, kind))
    expected = reference(core, dequantised(model, state), question)
    found = trained(core, host_wan, model, question)
    assert worst(found, expected) < 1e-4
    assert all(grad.dtype == torch.float32 for pair in found.values() for grad in pair)


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


def test_buffers_that_are_used_again_do_not_spoil_the_gradient(
    core, host_wan, state, question, tmp_path, monkeypatch
):
    expected = reference(core, state, question)
    model = load_dit(tmp_path, state)
    reused_buffer(monkeypatch)

    found = trained(core, host_wan, model, question, [lambda denoiser, _: with_casting(denoiser.patcher)])
    cast_from_the_start = trained(core, host_wan, with_casting(load_dit(tmp_path, state)), question)
    assert worst(found, expected) < 1e-4 and worst(cast_from_the_start, expected) < 1e-4


def test_plain_autograd_over_such_buffers_is_wrong(core, host_wan, state, question, tmp_path, monkeypatch):
    """The test of the test: without frozen layers the simulation must show."""
    reused_buffer(monkeypatch)
    monkeypatch.setattr(host_wan, "frozen_forward", lambda module: module.forward)
    found = trained(core, host_wan, with_casting(load_dit(tmp_path, state)), question)
    assert worst(found, reference(core, state, question)) > 0.1


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
    return own, weights, sorted(model.patches), dict(model.object_patches), net.manual_cast_dtype


def sampled(model, question):
    """One evaluation, the way a sampler does it."""
    import comfy.model_management as management

    noisy, sigma, context = question
    with torch.inference_mode():
        management.load_models_gpu([model])
        return model.model.apply_model(noisy, sigma, c_crossattn=context).clone()


def test_offloaded_weights_with_the_users_patches_give_the_right_gradient(
    core, host_wan, state, question, tmp_path, monkeypatch
):
    """Where the card is too small the host keeps weights in RAM and patches them at every cast."""
    import comfy.model_management as management

    name, change, seen = "blocks.0.cross_attn.v.weight", torch.full((DIM, DIM), 0.01), []
    model = load_dit(tmp_path, state).clone()
    model.add_patches({f"diffusion_model.{name}": ("diff", (change,))})

    def load_a_little(patcher, memory_required=0):
        management.load_models_gpu([patcher])
        patcher.unpatch_model(torch.device("cpu"))
        patcher.patch_model(torch.device("cpu"), lowvram_model_memory=1)
        host_wan.make_ordinary(patcher.model)
        seen.append(patcher.model.diffusion_model.get_submodule(name.removesuffix(".weight")).weight_function)

    monkeypatch.setattr(host_wan, "load", load_a_little)
    reused_buffer(monkeypatch)
    found = trained(core, host_wan, model, question)
    assert len(seen[0]) == 1
    assert worst(found, reference(core, state | {name: state[name] + change}, question)) < 1e-4


def test_streamed_weights_are_loaded_anew_as_plain_ones_or_refused(host_wan):
    from types import SimpleNamespace

    calls = []
    clone = lambda **how: calls.append(how) or "plain"  # noqa: E731
    streamed = SimpleNamespace(is_dynamic=lambda: True, cached_patcher_init=(None, ("x",)), clone=clone)
    assert host_wan.trainable_clone(streamed) == "plain" and calls == [{"disable_dynamic": True}]
    streamed.cached_patcher_init = None
    with pytest.raises(ValueError, match="--disable-dynamic-vram"):
        host_wan.trainable_clone(streamed)


class Halved(torch.Tensor):
    """A storage that only its owner can read, as GGUF's: the weight is twice what is stored."""


def test_weights_in_an_unknown_storage_run_as_their_owner_runs_them(
    core, host_wan, state, question, tmp_path, monkeypatch
):
    model, name = load_dit(tmp_path, state), "blocks.1.self_attn.v"
    module = model.model.diffusion_model.get_submodule(name)
    stored = torch.nn.Parameter((state[f"{name}.weight"] / 2).as_subclass(Halved), requires_grad=False)
    module._parameters["weight"] = stored

    def forward(self, x):
        weight = self.weight.as_subclass(torch.Tensor) * 2 if type(self.weight) is Halved else self.weight
        return torch.nn.functional.linear(x, weight, self.bias)

    monkeypatch.setattr(type(module), "forward", forward)
    found = trained(core, host_wan, model, question)
    monkeypatch.undo()
    assert worst(found, reference(core, state, question)) < 1e-4


class Cancelled(BaseException):
    pass


@pytest.mark.parametrize("ending", ["done", "cancelled", "cancelled in backward"])
@pytest.mark.parametrize("patched", [False, True])
def test_the_model_is_afterwards_as_before(core, host_wan, state, question, tmp_path, ending, patched):
    model = load_dit(tmp_path, {name: value.bfloat16() for name, value in state.items()})
    if patched:
        model = model.clone()
        key = "diffusion_model.blocks.0.self_attn.q.weight"
        model.add_patches({key: ("diff", (torch.full((DIM, DIM), 0.01),))})
    before, picture = fingerprint(model), sampled(model, question)

    def stop(*_):
        raise Cancelled

    def stop_in_backward(denoiser, prediction):
        prediction.tokens.register_hook(stop)

    checks = {"done": [], "cancelled": [stop], "cancelled in backward": [stop_in_backward]}[ending]
    if ending == "done":
        trained(core, host_wan, model, question)
    else:
        with pytest.raises(Cancelled):
            trained(core, host_wan, model, question, checks)
    import comfy.model_management as management

    assert not management.in_training
    assert fingerprint(model) == before
    assert torch.equal(sampled(model, question), picture)


def test_a_forward_that_somebody_else_replaced_is_used_and_put_back(
    core, host_wan, state, question, tmp_path
):
    model = load_dit(tmp_path, state)
    module = model.model.diffusion_model.get_submodule("blocks.1.ffn.0")
    original, calls = module.forward, []

    def theirs(x):
        calls.append(1)
        return original(x) * 2

    module.forward = theirs
    trained(core, host_wan, model, question)
    assert calls and module.forward is theirs


def test_the_model_may_be_unloaded_between_steps(core, host_wan, state, question, tmp_path):
    import comfy.model_management as management

    model, noisy, lora = load_dit(tmp_path, state), question[0], full_lora(core)
    with torch.inference_mode(False), host_wan.training_denoiser(model) as denoiser:
        with core.injected(denoiser.linears(), core.Injection(lora)):
            first = denoiser.velocity(*question).velocity
            management.unload_all_models()
            again = denoiser.velocity(*question).velocity
            assert torch.equal(first, again)
            gradients(loss_of(again, noisy), lora)


def test_kernels_without_a_backward_are_not_used(core, host_wan, state, question, tmp_path, monkeypatch):
    """Sage and flash attention have none; some of them detach in silence."""
    from comfy.ldm.modules import attention
    from comfy.ldm.wan import model as wan_model

    @attention.wrap_attn
    def kernel(q, k, v, heads, *args, **kwargs):
        with torch.no_grad():
            return attention.attention_pytorch(q, k, v, heads)

    monkeypatch.setattr(wan_model, "optimized_attention", kernel)
    found = trained(core, host_wan, load_dit(tmp_path, state), question)
    assert all(grad.any() for pair in found.values() for grad in pair)


def test_the_model_is_not_copied(core, host_wan, question, tmp_path):
    """Memory of the process grows by less than a twentieth of the weights, optimiser and adapters aside."""
    wide = dit_state(blocks=40)
    size = sum(value.numel() * value.element_size() for value in wide.values())
    model = load_dit(tmp_path, wide)
    del wide
    gc.collect()
    with torch.inference_mode(False):
        before = resident_bytes()
        with host_wan.training_denoiser(model) as denoiser:
            assert resident_bytes() - before < size / 20
            assert len(denoiser.linears()) == 40 * 10


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("channels", [36, 32])
def test_models_for_images_are_refused_with_a_remedy(host_wan, tmp_path, channels):
    model = load_dit(tmp_path, dit_state(channels=channels))
    with pytest.raises(ValueError, match=f"{channels} input channels.*load Wan2.1-T2V"):
        host_wan.spec_of(model)


def test_the_published_sizes_have_their_names(host_wan):
    from types import SimpleNamespace

    from comfy.ldm.wan.model import WanModel
    from comfy.ops import disable_weight_init

    sizes = dict(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
    net = WanModel(in_dim=16, device="meta", dtype=torch.float16, operations=disable_weight_init, **sizes)
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=net))
    assert host_wan.spec_of(model).name == "Wan2.1-T2V-1.3B"


def test_blocks_are_checkpointed_and_tokens_are_taken_once(core, host_wan, state, question, tmp_path):
    """Each block runs once forward and once more in backward; its tokens carry the gradient."""
    model, runs = load_dit(tmp_path, state), itertools.count()
    attention = model.model.diffusion_model.blocks[0].self_attn
    original = attention.forward

    def counted(*args, **kwargs):
        next(runs)
        return original(*args, **kwargs)

    attention.forward = counted
    seen = []
    trained(core, host_wan, model, question, [lambda _, prediction: seen.append(prediction.tokens)])
    assert next(runs) == 2 and seen[0].requires_grad
