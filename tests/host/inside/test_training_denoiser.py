"""The graph's MODEL as a denoiser: its gradients, and that nothing of it is left changed."""

import gc
import itertools
import os

import pytest
import torch
from random_wan import DIM, TRAINED_FFN, dit_state, load_dit, pack
from training_gradients import (
    SHAPE,
    TOKENS,
    fingerprint,
    full_lora,
    gradients,
    injected,
    loss_of,
    question,
    reference,
    reused_buffer,
    sampled,
    trained,
    with_casting,
    worst,
)


@pytest.fixture(scope="module")
def host_wan():
    return pack("nodes.host.denoiser")


@pytest.fixture(scope="module")
def state():
    return dit_state(ffn=TRAINED_FFN)


def test_gradients_are_those_of_plain_autograd(host_wan, state, tmp_path):
    model = load_dit(tmp_path, state)
    assert next(model.model.diffusion_model.parameters()).is_inference()
    seen = []
    checks = [lambda denoiser, prediction: seen.append(prediction)]
    found = trained(model, checks)
    assert worst(found, reference(state)) < 1e-4
    assert seen[0].velocity.shape == SHAPE and seen[0].tokens.shape == (1, TOKENS, DIM)


def test_buffers_that_are_used_again_do_not_spoil_the_gradient(host_wan, state, tmp_path, monkeypatch):
    expected = reference(state)
    model = load_dit(tmp_path, state)
    reused_buffer(monkeypatch)

    found = trained(model, [lambda denoiser, _: with_casting(denoiser.patcher)])
    cast_from_the_start = trained(with_casting(load_dit(tmp_path, state)))
    assert worst(found, expected) < 1e-4 and worst(cast_from_the_start, expected) < 1e-4


def test_plain_autograd_over_such_buffers_is_wrong(host_wan, state, tmp_path, monkeypatch):
    """The test of the test: without frozen layers the simulation must show."""
    reused_buffer(monkeypatch)
    monkeypatch.setattr(host_wan, "freeze_forward", lambda module, *_, **__: module.forward)
    found = trained(with_casting(load_dit(tmp_path, state)))
    assert worst(found, reference(state)) > 0.1


def test_a_resident_weight_is_used_as_it_is_and_any_other_is_cast(monkeypatch):
    import comfy.ops

    versions, original, calls = pack("nodes.host.versions"), comfy.ops.cast_bias_weight, []
    monkeypatch.setattr(
        comfy.ops, "cast_bias_weight", lambda *a, **how: calls.append(1) or original(*a, **how)
    )
    linear = comfy.ops.disable_weight_init.Linear(3, 2)
    torch.nn.init.ones_(linear.weight)
    torch.nn.init.ones_(linear.bias)

    def load(dtype=torch.float32):
        calls.clear()
        with versions.loaded_weight(linear, torch.ones(1, 3, dtype=dtype)) as (weight, bias):
            return weight, len(calls)

    weight, count = load()
    assert weight is linear.weight and count == 0
    weight, count = load(torch.bfloat16)
    assert weight.dtype == torch.bfloat16 and count == 1
    linear.weight_function = [lambda weight: 2 * weight]
    weight, count = load()
    assert weight.eq(2).all() and count == 1
    linear.weight_function, linear.comfy_cast_weights = [], True
    assert load()[1] == 1


def test_offloaded_weights_with_the_users_patches_give_the_right_gradient(
    host_wan, state, tmp_path, monkeypatch
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
        host_wan.make_normal(patcher.model)
        seen.append(patcher.model.diffusion_model.get_submodule(name.removesuffix(".weight")).weight_function)

    monkeypatch.setattr(host_wan, "load", load_a_little)
    reused_buffer(monkeypatch)
    found = trained(model)
    assert len(seen[0]) == 1
    assert worst(found, reference(state | {name: state[name] + change})) < 1e-4


def test_streamed_weights_are_loaded_anew_as_plain_ones_or_refused(host_wan):
    from types import SimpleNamespace

    calls = []
    clone = lambda **how: calls.append(how) or "plain"  # noqa: E731
    streamed = SimpleNamespace(is_dynamic=lambda: True, cached_patcher_init=(None, ("x",)), clone=clone)
    assert host_wan.prepare_clone(streamed) == "plain" and calls == [{"disable_dynamic": True}]
    streamed.cached_patcher_init = None
    with pytest.raises(ValueError, match="--disable-dynamic-vram"):
        host_wan.prepare_clone(streamed)


class Halved(torch.Tensor):
    """A storage that only its owner can read, as GGUF's: the weight is twice what is stored."""


def test_weights_in_an_unknown_storage_run_as_their_owner_runs_them(host_wan, state, tmp_path, monkeypatch):
    model, name = load_dit(tmp_path, state), "blocks.1.self_attn.v"
    module = model.model.diffusion_model.get_submodule(name)
    stored = torch.nn.Parameter((state[f"{name}.weight"] / 2).as_subclass(Halved), requires_grad=False)
    module._parameters["weight"] = stored

    def forward(self, x):
        weight = self.weight.as_subclass(torch.Tensor) * 2 if type(self.weight) is Halved else self.weight
        return torch.nn.functional.linear(x, weight, self.bias)

    monkeypatch.setattr(type(module), "forward", forward)
    found = trained(model)
    monkeypatch.undo()
    assert worst(found, reference(state)) < 1e-4


class Canceled(BaseException):
    pass


@pytest.mark.parametrize("ending", ["done", "canceled", "canceled in backward"])
@pytest.mark.parametrize("patched", [False, True])
def test_the_model_is_afterwards_as_before(host_wan, state, tmp_path, ending, patched):
    model = load_dit(tmp_path, {name: value.bfloat16() for name, value in state.items()})
    if patched:
        model = model.clone()
        key = "diffusion_model.blocks.0.self_attn.q.weight"
        model.add_patches({key: ("diff", (torch.full((DIM, DIM), 0.01),))})
    before, picture = fingerprint(model), sampled(model)

    def stop(*_):
        raise Canceled

    def stop_in_backward(denoiser, prediction):
        prediction.tokens.register_hook(stop)

    checks = {"done": [], "canceled": [stop], "canceled in backward": [stop_in_backward]}[ending]
    if ending == "done":
        trained(model)
    else:
        with pytest.raises(Canceled):
            trained(model, checks)
    import comfy.model_management as management

    assert not getattr(management, "in_training", False)
    assert fingerprint(model) == before
    assert torch.equal(sampled(model), picture)


def test_a_forward_that_somebody_else_replaced_is_used_and_put_back(host_wan, state, tmp_path):
    model = load_dit(tmp_path, state)
    module = model.model.diffusion_model.get_submodule("blocks.1.ffn.0")
    original, calls = module.forward, []

    def theirs(x):
        calls.append(1)
        return original(x) * 2

    module.forward = theirs
    trained(model)
    assert calls and module.forward is theirs


def test_the_model_may_be_unloaded_between_steps(host_wan, state, tmp_path):
    import comfy.model_management as management

    model, asked, lora = load_dit(tmp_path, state), question(), full_lora()
    with torch.inference_mode(False), host_wan.training_denoiser(model) as denoiser:
        with injected(denoiser.linears(), lora):
            first = denoiser.velocity(*asked).velocity
            management.unload_all_models()
            again = denoiser.velocity(*asked).velocity
            assert torch.equal(first, again)
            gradients(loss_of(again, asked[0]), lora)


def test_kernels_without_a_backward_are_not_used(host_wan, state, tmp_path, monkeypatch):
    """Sage and flash attention have none; some of them detach in silence."""
    from comfy.ldm.modules import attention
    from comfy.ldm.wan import model as wan_model

    @getattr(attention, "wrap_attn", lambda function: function)  # older versions have none
    def kernel(q, k, v, heads, *args, **kwargs):
        with torch.no_grad():
            return attention.attention_pytorch(q, k, v, heads)

    monkeypatch.setattr(wan_model, "optimized_attention", kernel)
    found = trained(load_dit(tmp_path, state))
    assert all(grad.any() for pair in found.values() for grad in pair)


def test_the_model_is_not_copied(host_wan, tmp_path):
    """Memory of the process grows by less than a twentieth of the weights, optimizer and adapters aside."""
    wide = dit_state(blocks=40, ffn=TRAINED_FFN)
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


def test_the_published_sizes_have_their_names(host_wan):
    from types import SimpleNamespace

    from comfy.ldm.wan.model import WanModel
    from comfy.ops import disable_weight_init

    sizes = dict(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
    net = WanModel(in_dim=16, device="meta", dtype=torch.float16, operations=disable_weight_init, **sizes)
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=net, model_type="FLOW"))
    assert host_wan.read_spec(model).name == "Wan2.1-T2V-1.3B"


def test_blocks_are_checkpointed_and_tokens_are_taken_once(host_wan, state, tmp_path):
    """Each block runs once forward and once more in backward; its tokens carry the gradient."""
    model, runs = load_dit(tmp_path, state), itertools.count()
    attention = model.model.diffusion_model.blocks[0].self_attn
    original = attention.forward

    def counted(*args, **kwargs):
        next(runs)
        return original(*args, **kwargs)

    attention.forward = counted
    seen = []
    trained(model, [lambda _, prediction: seen.append(prediction.tokens)])
    assert next(runs) == 2 and seen[0].requires_grad
