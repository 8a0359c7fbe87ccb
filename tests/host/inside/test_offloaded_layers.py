"""Weights that ComfyUI leaves in RAM, moved block by block: how often, to the same bits, and put back."""

from collections import Counter
from dataclasses import replace

import pytest
import random_variants
import torch
from random_wan import DIM, TRAINED_FFN, dit_state, load_dit, pack, quantized
from training_gradients import SHAPE, fingerprint, full_lora, gradients, injected, loss_of, question, sampled

BLOCKS, ROOMS, VACE_BLOCKS = 4, 2, 2
PATCHED = "blocks.0.cross_attn.v.weight"
FAILING_CAST = 20
"""Number of the cast that fails in a test, in the forward pass of a block."""


@pytest.fixture(scope="module")
def state():
    return dit_state(blocks=BLOCKS, ffn=TRAINED_FFN)


@pytest.fixture
def layers():
    return pack("nodes.host.offloaded_layers")


@pytest.fixture
def in_ram(layers, monkeypatch):
    """A function that makes the pack see all layers as if ComfyUI had left them in RAM."""
    plain = pack("nodes.host.denoiser").load

    def load_nothing(patcher, memory_required=0):
        plain(patcher, memory_required)
        patcher.unpatch_model(torch.device("cpu"))
        patcher.patch_model(torch.device("cpu"), lowvram_model_memory=1)
        pack("nodes.host.inference_tensors").make_normal(patcher.model)

    def leave():
        monkeypatch.setattr(pack("nodes.host.denoiser"), "load", load_nothing)
        monkeypatch.setattr(layers, "is_elsewhere", lambda layer, device: True)

    return leave


def train(model, steps=1, before=lambda denoiser: None, after=lambda prediction: None, options=None):
    """The gradients of the last of some steps; `options` are the extra values of a CONDITIONING."""
    noisy, sigma, context = question()
    with torch.inference_mode(), torch.inference_mode(False):  # as in a node
        extra = make_extra_inputs(model, options or {}, context, noisy)
        with pack("nodes.host.denoiser").training_denoiser(model) as denoiser:
            for _ in range(steps):
                before(denoiser)
                lora = full_lora(denoiser.spec)
                with injected(denoiser.linears(), lora):
                    prediction = denoiser.velocity(noisy, sigma, context, token_block=0, extra=extra)
                    after(prediction)
                    found = gradients(loss_of(*prediction), lora)
    return found


def make_extra_inputs(model, options, context, noisy):
    made, _ = pack("nodes.host.extra_inputs").make_condition(model, options, context[0], noisy.shape[1:])
    return pack("smra_core.wan.condition").stack_inputs([made.inputs])


def patched(model):
    """The MODEL with a patch of another node."""
    clone = model.clone()
    clone.add_patches({f"diffusion_model.{PATCHED}": ("diff", (torch.full((DIM, DIM), 0.01),))})
    return clone


def make_models(state, tmp_path):
    """MODELs in the forms that checkpoints are stored in."""
    half = {name: value.bfloat16() for name, value in state.items()}
    yield lambda: load_dit(tmp_path, state)
    yield lambda: load_dit(tmp_path, half)
    yield lambda: patched(load_dit(tmp_path, half))
    for kind in ("float8_e4m3fn", "int8_tensorwise"):
        yield lambda kind=kind: load_dit(tmp_path, quantized(state, kind))


def test_gradients_are_bit_equal_to_those_of_the_model_on_the_device(state, tmp_path, in_ram):
    makes = list(make_models(state, tmp_path))
    expected = [train(make()) for make in makes]
    in_ram()
    for index, (make, wanted) in enumerate(zip(makes, expected, strict=True)):
        found = train(make(), steps=2)
        for name, pair in wanted.items():
            assert all(map(torch.equal, found[name], pair)), (index, name)


@pytest.fixture
def moved(layers, monkeypatch):
    """A counter of the times that each weight is moved, by name, and the function that begins a step."""
    import comfy.ops

    moved, names, cast, start = Counter(), {}, comfy.ops.cast_bias_weight, layers.Copies.start

    def count_cast(layer, *args, **options):
        if id(layer.weight) in names:  # not a copy that is there already
            moved[names[id(layer.weight)]] += 1
        return cast(layer, *args, **options)

    def count_copy(copies, sources, targets):
        moved.update(names[source.data_ptr()] for source in sources)
        return start(copies, sources, targets)

    def begin_step(denoiser):
        moved.clear()
        for name, parameter in denoiser.dit.named_parameters():
            names[id(parameter)] = names[parameter.data_ptr()] = name

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", count_cast)
    monkeypatch.setattr(layers.Copies, "start", count_copy)
    return moved, begin_step


def test_a_weight_is_moved_at_most_twice_a_step(state, tmp_path, in_ram, moved):
    """ComfyUI alone moves a linear up to three times: forward, recomputed and backward."""
    counts, begin_step = moved
    in_ram()
    train(load_dit(tmp_path, state), steps=2, before=begin_step)
    assert max(counts.values()) == 2
    # The last two blocks stay when the direction turns, and the first two until the next step.
    assert {counts[f"blocks.{block}.ffn.2.weight"] for block in range(BLOCKS)} == {1}
    assert 2 * (BLOCKS - ROOMS) == BLOCKS
    assert {counts[f"blocks.1.{path}"] for path in ("self_attn.q.bias", "norm3.weight")} == {1}


def test_vaces_own_blocks_are_moved_once_a_step(in_ram, moved):
    """No gradient reaches them, as they see the video before the first LoRA, so that none runs again."""
    vace, (counts, begin_step) = random_variants.BY_NAME["VACE"], moved
    sizes = {"vace_layers": VACE_BLOCKS, "vace_in_dim": 96}
    model = random_variants.load(replace(vace, blocks=BLOCKS, options=sizes))
    in_ram()
    video = torch.ones(1, 32, *SHAPE[2:])
    train(model, 2, begin_step, options={"vace_frames": [video], "vace_strength": [0.8]})
    own = [name for name, _ in model.model.diffusion_model.named_parameters() if "vace_blocks" in name]
    assert {name.split(".")[1] for name in own} == {str(block) for block in range(VACE_BLOCKS)}
    assert {counts[name] for name in own if name.endswith(".weight")} == {1}
    assert max(counts.values()) == 2


def test_a_layer_that_comfyui_moves_itself_is_left_to_it(state, tmp_path, in_ram):
    """Another model may need the room, or a weight may find some, between two steps."""
    name = "blocks.2.ffn.0"

    def exchange(denoiser):
        layer = denoiser.dit.get_submodule(name)
        layer.weight = torch.nn.Parameter(layer.weight * 2, requires_grad=False)

    expected = train(load_dit(tmp_path, state | {f"{name}.weight": state[f"{name}.weight"] * 2}))
    in_ram()
    found = train(load_dit(tmp_path, state), before=exchange)
    assert all(torch.equal(a, b) for key in expected for a, b in zip(found[key], expected[key], strict=True))


def test_a_model_that_was_unloaded_between_steps_is_moved_anew(state, tmp_path, in_ram):
    import comfy.model_management as management

    expected = train(load_dit(tmp_path, state))
    in_ram()
    found = train(load_dit(tmp_path, state), 2, lambda denoiser: management.unload_all_models())
    assert all(torch.equal(a, b) for key in expected for a, b in zip(found[key], expected[key], strict=True))


class Canceled(BaseException):
    pass


def stop(*_):
    raise Canceled


@pytest.mark.parametrize("ending", ["done", "canceled", "canceled in backward", "failed in a layer"])
def test_the_model_is_afterwards_as_before(state, tmp_path, in_ram, ending, monkeypatch):
    model = patched(load_dit(tmp_path, {name: value.bfloat16() for name, value in state.items()}))
    before, picture = fingerprint(model), sampled(model)
    parameters = {name: id(value) for name, value in model.model.named_parameters()}
    in_ram()
    if ending == "done":
        train(model, steps=2)
    else:
        with pytest.raises(Canceled):
            if ending == "failed in a layer":
                fail_at_a_cast(monkeypatch)
            train(model, after={"canceled": stop, "canceled in backward": stop_in_backward}.get(ending, id))
    monkeypatch.undo()
    assert {name for name, value in model.model.named_parameters()} == parameters.keys()
    assert fingerprint(model) == before
    assert torch.equal(sampled(model), picture)


def stop_in_backward(prediction):
    prediction.tokens.register_hook(stop)


def fail_at_a_cast(monkeypatch):
    import comfy.ops

    calls, original = [], comfy.ops.cast_bias_weight

    def cast(*args, **options):
        calls.append(1)
        return stop() if len(calls) == FAILING_CAST else original(*args, **options)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", cast)


def test_room_for_two_blocks_is_left_where_the_weights_do_not_fit(state, tmp_path, monkeypatch):
    import comfy.model_management as management

    denoiser_module, asked = pack("nodes.host.denoiser"), []
    model = load_dit(tmp_path, state)
    size, needed = model.model_size(), 1000
    monkeypatch.setattr(denoiser_module, "load", lambda patcher, memory: asked.append(memory))
    monkeypatch.setattr(management, "unload_all_models", lambda: None)
    for free in (size + needed, size + needed - 1):
        monkeypatch.setattr(management, "get_free_memory", lambda *_, free=free, **__: free)
        with torch.inference_mode(False), denoiser_module.training_denoiser(model, needed):
            pass
    assert asked == [needed, needed + ROOMS * size // BLOCKS]


def test_only_what_is_elsewhere_and_can_be_copied_is_moved(layers):
    import comfy.ops

    linear, cpu = comfy.ops.manual_cast.Linear(3, 2), torch.device("cpu")
    assert not layers.is_elsewhere(linear, cpu)
    assert layers.is_elsewhere(linear, torch.device("meta"))
    linear._parameters["weight"] = torch.nn.Parameter(torch.ones(2, 3).as_subclass(Foreign))
    assert not layers.is_elsewhere(linear, torch.device("meta"))


class Foreign(torch.Tensor):
    """A storage that only its owner can read, as GGUF's."""


def test_copies_run_beside_the_work_where_comfyuis_own_do(monkeypatch):
    import comfy.model_management as management

    versions, device = pack("nodes.host.versions"), torch.device("cuda")
    for stream, is_there in ((object(), True), (None, False)):
        monkeypatch.setattr(management, "get_offload_stream", lambda device, it=stream: it, raising=False)
        assert versions.has_offload_stream(device) is is_there
    monkeypatch.delattr(management, "get_offload_stream")
    assert not versions.has_offload_stream(device)
