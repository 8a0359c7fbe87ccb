"""Training on every WAN variant that the host knows: what its forward takes, its gradients, and that it is
afterwards as before.
"""

import contextlib
import logging

import pytest
import random_variants
import torch
from random_variants import BY_NAME, FRAMES, HEIGHT, TEXT_DIM, WIDTH, sample
from random_wan import difference, pack
from training_gradients import (
    compare_slopes,
    fingerprint,
    gradients,
    injected,
    reused_buffer,
    with_casting,
    worst,
)
from training_graph import train_motion

OVERWRITTEN = ("Animate-2", "S2V", "WanDancer")
"""Variants whose forward overwrites what its backward pass needs."""
ADDED_TOKENS = ("HuMo", "SCAIL", "SCAIL-2")
"""Variants whose blocks also hold tokens of a reference or a pose, which SuRA cannot tell apart."""
TRAINED = (
    "T2V", "I2V 2.1", "first and last frame 2.1", "I2V 2.2", "Fun control", "Fun control 2.2", "Fun inpaint",
    "Fun camera", "Fun camera 2.2", "VACE", "Animate", *ADDED_TOKENS,
)  # fmt: skip
SHAPE = (16, FRAMES, HEIGHT, WIDTH)
SIGMA = torch.tensor([0.6])
TOKENS = FRAMES * HEIGHT * WIDTH // 4
EXACT, STEP = 1e-5, 1e-5
ROUNDED, LONG_STEP, ROUGH = ("Animate",), 1e-4, 1e-3
"""Variants of which a part computes in float32 in any case, with their step and relative tolerance."""


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NOISE, CONTEXT = draw(1, *SHAPE, seed=3), draw(1, 7, TEXT_DIM, seed=4)
"""As random_variants.sample draws them."""


@pytest.fixture(scope="module")
def loaded():
    """Models by the variant's name; each is made once."""
    import comfy.model_base

    made = {}

    def load(name):
        if not hasattr(comfy.model_base, BY_NAME[name].kind):
            pytest.skip(f"This version of ComfyUI does not know {name}.")
        if name not in made:
            made[name] = random_variants.load(BY_NAME[name])
        return made[name]

    return load


@contextlib.contextmanager
def opened(model, options, dtype=None):
    """The denoiser of a node, and the extra inputs of a batch of one sample."""
    host, condition = pack("nodes.host.denoiser"), pack("smra_core.wan.condition")
    with torch.inference_mode(), torch.inference_mode(False):  # as in a node
        made, _ = pack("nodes.host.extra_inputs").make_condition(model, options, CONTEXT[0], SHAPE)
        with host.training_denoiser(model) as denoiser:
            yield denoiser, condition.stack_inputs([made.inputs])


def conditioning(name):
    with torch.inference_mode():
        return BY_NAME[name].conditioning()


def full_lora(spec, dtype=torch.float32):
    adapter, generator = pack("smra_core.lora.adapter"), torch.Generator().manual_seed(3)
    lora = adapter.init_lora(spec, pack("smra_core.lora.plan").ALL_LAYERS, 2, generator)
    for pair in lora.values():
        pair.b.data.normal_(std=0.1, generator=generator)
        pair.to(dtype)
    return lora


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_step_sees_what_the_sampler_sees(loaded, name):
    """One Euler step from noise to sigma 0 ends where the trained model's velocity points to."""
    model = loaded(name)
    sampled = sample(BY_NAME[name], model, 1)
    with opened(model, conditioning(name)) as (denoiser, extra):
        velocity = denoiser.velocity(NOISE, torch.ones(1), CONTEXT, extra=extra).velocity.detach()
        ours = model.model.process_latent_out(NOISE - velocity)
    assert difference(ours, sampled) < EXACT


def test_without_the_extra_inputs_it_would_see_something_else(loaded):
    """The test of the test: an image of zeros must show."""
    sampled = sample(BY_NAME["I2V 2.2"], loaded("I2V 2.2"), 1)
    with opened(loaded("I2V 2.2"), {}) as (denoiser, extra):
        velocity = denoiser.velocity(NOISE, torch.ones(1), CONTEXT, extra=extra).velocity.detach()
        ours = loaded("I2V 2.2").model.process_latent_out(NOISE - velocity)
    assert difference(ours, sampled) > 1000 * EXACT


def in_float64(monkeypatch, model):
    """Compute in float64 throughout, also the positions that the host rounds to float32."""
    host, embedder = pack("nodes.host.denoiser"), model.model.diffusion_model.rope_embedder
    monkeypatch.setattr(host, "choose_training_dtype", lambda device: torch.float64)
    forward = embedder.forward
    monkeypatch.setattr(embedder, "forward", lambda ids: forward(ids).double())


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_of_the_lora_equal_finite_differences(loaded, monkeypatch, name):
    model = loaded(name)
    before = fingerprint(model)
    step, tolerance = (LONG_STEP, ROUGH) if name in ROUNDED else (STEP, 1e-6)
    in_float64(monkeypatch, model)
    lora = full_lora(pack("nodes.host.denoiser").read_spec(model), torch.float64)
    block = None if name in ADDED_TOKENS else 0
    with (
        opened(model, conditioning(name)) as (denoiser, extra),
        injected(denoiser.linears(), lora),
    ):

        def total():
            velocity, tokens = denoiser.velocity(NOISE.double(), SIGMA, CONTEXT.double(), block, extra)
            return velocity.square().mean() + (0 if tokens is None else 0.1 * tokens.square().mean())

        slope, measured = compare_slopes(total, lora, draw, step)
    monkeypatch.undo()
    assert slope == pytest.approx(measured, rel=tolerance, abs=1e-8)
    assert fingerprint(model) == before


def gradients_of(model, options, prepare=None):
    lora = full_lora(pack("nodes.host.denoiser").read_spec(model))
    with opened(model, options) as (denoiser, extra), injected(denoiser.linears(), lora):
        if prepare is not None:
            prepare(denoiser.patcher)
        velocity = denoiser.velocity(NOISE, SIGMA, CONTEXT, extra=extra).velocity
        return gradients(velocity.square().mean(), lora)


@pytest.mark.parametrize("name", ["I2V 2.1", "Fun control", "VACE", "HuMo", "Animate"])
def test_offloaded_weights_give_the_same_gradient_in_every_part(loaded, monkeypatch, name):
    model = loaded(name)
    expected = gradients_of(model, conditioning(name))
    reused_buffer(monkeypatch)
    found = gradients_of(model, conditioning(name), with_casting)
    monkeypatch.undo()
    for module in model.model.diffusion_model.modules():
        if "comfy_cast_weights" in module.__dict__:
            del module.comfy_cast_weights
    assert worst(found, expected) < 1e-4


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in ADDED_TOKENS])
def test_only_the_tokens_of_the_latents_are_taken(loaded, name):
    """Another value in the last cell of the noisy latents changes the last token of block 0 most."""
    changed = NOISE.clone()
    changed[..., -2:, -2:] += 1
    with opened(loaded(name), conditioning(name)) as (denoiser, extra), torch.no_grad():
        seen = [denoiser.velocity(noisy, SIGMA, CONTEXT, 0, extra).tokens for noisy in (NOISE, changed)]
    assert seen[0].shape[1] == TOKENS
    change = (seen[1] - seen[0]).abs().sum(-1)[0]
    assert change.argmax() % (HEIGHT * WIDTH // 4) == HEIGHT * WIDTH // 4 - 1


@pytest.mark.parametrize("name", ADDED_TOKENS)
def test_tokens_among_which_others_are_cannot_be_aligned(loaded, name):
    with opened(loaded(name), conditioning(name)) as (denoiser, extra):
        with pytest.raises(ValueError, match="SuRA cannot tell them apart. Set sura_weight to 0"):
            denoiser.velocity(NOISE, SIGMA, CONTEXT, 0, extra)


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_variants_without_a_backward_are_refused_by_name(loaded, name):
    model = loaded(name)
    before, lora = fingerprint(model), full_lora(pack("nodes.host.denoiser").read_spec(model))
    with pytest.raises(RuntimeError) as raised, opened(model, conditioning(name)) as (denoiser, extra):
        with injected(denoiser.linears(), lora):
            denoiser.velocity(NOISE, SIGMA, CONTEXT, extra=extra).velocity.square().mean().backward()
    told = pack("nodes.training.run").explain_error(raised.value.with_traceback(None), model)
    kind = type(model.model.diffusion_model).__name__
    assert told.startswith(f"This MODEL is {kind}, and ComfyUI's code") and "apply it to this MODEL" in told
    assert fingerprint(model) == before


def try_step(name, model, block=None, **changes):
    trial, plan = pack("nodes.host.trial_step"), pack("smra_core.lora.plan").ALL_LAYERS
    with torch.inference_mode(), torch.inference_mode(False):
        inputs = made(model, conditioning(name))[0].inputs
        step = changes.get("step", trial.check_training_step)
        return step(model, plan, CONTEXT[0], SHAPE, inputs, block)


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_without_values_finds_that_a_variant_can_be_trained(loaded, name):
    """All of its code runs without values, so that the answer is never left to training."""
    before = fingerprint(loaded(name))
    try_step(name, loaded(name), step=pack("nodes.host.trial_step").take_valueless_step)
    assert fingerprint(loaded(name)) == before


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_a_step_without_values_refuses_a_variant_by_name_and_reason(loaded, name):
    before, kind = fingerprint(loaded(name)), type(loaded(name).model.diffusion_model).__name__
    with pytest.raises(ValueError, match=f"This MODEL is {kind}, .* overwrites values .*inplace operation"):
        try_step(name, loaded(name))
    assert fingerprint(loaded(name)) == before


@pytest.mark.parametrize("name", ADDED_TOKENS)
def test_a_step_without_values_finds_tokens_that_cannot_be_aligned(loaded, name):
    with pytest.raises(ValueError, match="SuRA cannot tell them apart"):
        try_step(name, loaded(name), block=0)


def test_what_needs_values_to_run_is_left_to_training(loaded, monkeypatch, caplog):
    net = loaded("I2V 2.2").model.diffusion_model
    forward = type(net).forward

    def forward_by_value(self, x, *args, **kwargs):
        assert x.sum().item() == x.sum().item()
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(type(net), "forward", forward_by_value)
    monkeypatch.setattr(pack("nodes.host.trial_step"), "_passed", set())
    with caplog.at_level(logging.INFO, "smrabooth"):
        try_step("I2V 2.2", loaded("I2V 2.2"))
    assert "A step of WanModel cannot be tried without values" in caplog.text


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_the_node_refuses_it_before_anything_is_encoded_or_loaded(nodes, graph, loaded, monkeypatch, name):
    import comfy.model_management as management

    model = loaded(name)
    for place, part in ((graph.vae, "encode"), (management, "load_models_gpu")):
        monkeypatch.setattr(place, part, None)
    clip = torch.rand(4 * FRAMES - 3, 8 * HEIGHT, 8 * WIDTH, 3, generator=torch.Generator().manual_seed(6))
    options = conditioning(name)
    with pytest.raises(ValueError, match="overwrites values that a gradient needs"):
        train_motion(
            nodes, graph, model=model, frames=clip, positive=[[CONTEXT, options]], width=8 * WIDTH,
            height=8 * HEIGHT, frame_count=4 * FRAMES - 3,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("FlowRVS", "WAN21_FlowRVS .* does not start from noise"),
        ("CausalAR", "CausalWanModel: .* part by part"),
    ],
)
def test_models_of_another_kind_of_prediction_are_refused_by_name(loaded, name, told):
    with pytest.raises(ValueError, match=told):
        pack("nodes.host.denoiser").read_spec(loaded(name))


def made(model, options, frames=FRAMES):
    with torch.inference_mode(False):
        shape = (16, frames, HEIGHT, WIDTH)
        return pack("nodes.host.extra_inputs").make_condition(model, options, CONTEXT[0], shape)


def test_a_given_first_frame_is_found_in_the_mask(loaded):
    condition, notes = made(loaded("I2V 2.2"), conditioning("I2V 2.2"))
    assert condition.given.tolist() == [True] + [False] * (FRAMES - 1)
    mask, image = condition.inputs["c_concat"].split([4, 16])
    assert mask[:, 0].all() and not mask[:, 1:].any() and image.any()
    assert notes == [
        "Besides the text the model takes c_concat 20x3x4x8. Of 3 latents 1 are given; the velocity loss "
        "leaves them out."
    ]


def test_a_mask_that_the_model_does_not_take_gives_nothing(loaded):
    condition, notes = made(loaded("T2V"), conditioning("I2V 2.2"))
    assert condition == pack("smra_core.wan.condition").Condition({}) and notes == []


def test_a_latent_of_which_a_part_is_missing_counts(loaded):
    """A last frame is one of the four of its latent; an image with a hole is not given whole."""
    options = conditioning("I2V 2.2")
    mask = torch.ones(1, 4, FRAMES, HEIGHT, WIDTH)
    mask[:, :, 0] = 0
    mask[:, 3, -1] = 0
    assert made(loaded("I2V 2.2"), options | {"concat_mask": mask})[0].given.tolist() == [True, False, False]
    mask[:, :, 0, :1, :1] = 1
    assert made(loaded("I2V 2.2"), options | {"concat_mask": mask})[0].given is None


def test_frames_that_vace_keeps_are_given(loaded):
    mask = torch.ones(1, 64, FRAMES, HEIGHT, WIDTH)
    mask[:, :, 0] = 0
    options = conditioning("VACE")
    assert made(loaded("VACE"), options)[0].given is None
    kept, _ = made(loaded("VACE"), options | {"vace_mask": [mask]})
    assert kept.given.tolist() == [True, False, False]
    assert kept.inputs["vace_context"].shape == (1, 96, FRAMES, HEIGHT, WIDTH)


@pytest.mark.parametrize("name", ["I2V 2.1", "I2V 2.2", "Fun inpaint", "Fun camera 2.2"])
def test_a_still_is_trained_with_the_image_left_out_and_the_report_says_so(loaded, name):
    condition, notes = made(loaded(name), conditioning(name), frames=1)
    assert condition.given is None and not condition.inputs["c_concat"].any()
    assert "trained with the image left out (zeros)" in notes[0] and len(notes) == 2


def test_a_control_image_of_a_still_counts_and_that_of_a_clip_is_left_out(loaded):
    options = conditioning("Fun control 2.2")
    one = options | {"concat_latent_image": options["concat_latent_image"][:, :, :1]}
    assert made(loaded("Fun control 2.2"), one, frames=1)[0].inputs["c_concat"].any()
    condition, notes = made(loaded("Fun control 2.2"), options, frames=1)
    assert not condition.inputs["c_concat"].any() and "left out (zeros)" in notes[0]


def test_a_model_for_images_without_one_says_so(loaded):
    condition, notes = made(loaded("I2V 2.1"), {})
    assert not condition.inputs["c_concat"].any() and "clip_fea" not in condition.inputs
    assert "carries none: it is trained with the image left out" in notes[0]
    assert "CLIP's features of an image" in notes[1]


@pytest.mark.parametrize("name", ["I2V 2.2", "VACE"])
def test_conditioning_for_another_clip_is_refused_with_the_length(loaded, name):
    with pytest.raises(ValueError, match="for 9 frames .3 latents., and the clip has 13 .4.. Set length"):
        made(loaded(name), conditioning(name), frames=FRAMES + 1)


def test_a_control_video_of_another_size_is_refused_with_both_sizes(loaded):
    wide = [torch.ones(1, 32, FRAMES, HEIGHT, WIDTH + 2)]
    with pytest.raises(ValueError, match="latents of 3x4x10 .* this sample has 3x4x8"):
        made(loaded("VACE"), {"vace_frames": wide, "vace_strength": [1.0], "vace_mask": wide * 2})


@pytest.mark.parametrize("name", ["I2V 2.2", "VACE"])
def test_the_conditioning_of_the_graph_is_not_written_to(loaded, name):
    options = conditioning(name)
    tensors = [part for value in options.values() for part in (value if isinstance(value, list) else [value])]
    kept = [part.clone() if isinstance(part, torch.Tensor) else part for part in tensors]
    made(loaded(name), options)
    for part, before in zip(tensors, kept, strict=True):
        assert torch.equal(part, before) if isinstance(part, torch.Tensor) else part == before
