"""TI2V-5B in the graph: the host's own class of it and its VAE, trained, resumed, loaded by its loader."""

import logging

import pytest
import random_variants
import torch
from random_variants import BY_NAME, FRAMES, HEIGHT, TEXT_DIM, WIDTH
from random_wan import difference, pack
from test_training_endings import OUT_OF_MEMORY, Canceled, run_folder, same, strike
from training_gradients import compare_slopes, fingerprint, injected
from training_graph import Graph, train_motion, train_subject

NAME, CHANNELS = "TI2V-5B", 48
SHAPE = (CHANNELS, FRAMES, HEIGHT, WIDTH)
SIGMA, EXACT, STEP = 0.6, 1e-5, 1e-5


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NOISE, CONTEXT = draw(1, *SHAPE, seed=3), draw(1, 7, TEXT_DIM, seed=4)
"""As random_variants.sample draws them."""


@pytest.fixture(scope="module")
def model():
    return random_variants.load(BY_NAME[NAME])


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return Graph(tmp_path_factory.mktemp("5b"), is_5b=True)


@pytest.fixture
def opened(model):
    with torch.inference_mode(False), torch.enable_grad():
        with pack("nodes.host.denoiser").training_denoiser(model) as denoiser:
            yield denoiser


def first_given():
    mask = torch.ones(1, 1, *SHAPE[1:])
    mask[:, :, 0] = 0
    return mask


def test_the_model_is_known_by_its_latents(model):
    spec = pack("nodes.host.denoiser").read_spec(model)
    assert spec.latents is pack("smra_core.wan.spec").LATENTS_22
    assert spec.name == "Wan2.2-TI2V of 2 blocks, width 128"


@pytest.mark.parametrize("given", [False, True])
def test_a_training_step_sees_what_the_sampler_sees(model, given):
    """One Euler step from noise to sigma 0 ends where the trained model's velocity points to."""
    options = {"noise_mask": first_given()} if given else {}
    sampled = random_variants.sample(BY_NAME[NAME], model, 1, **options)
    host = pack("nodes.host.denoiser")
    with torch.inference_mode(False), host.training_denoiser(model) as denoiser:
        noisy, extra = NOISE, {}
        if given:
            # The host leaves an empty latent image as it is: zeros also in the model's space.
            noisy, extra = NOISE * first_given(), {"denoise_mask": first_given()}
        velocity = denoiser.velocity(noisy, torch.ones(1), CONTEXT, extra=extra).velocity.detach()
        ours = model.model.process_latent_out(noisy - velocity)
    compared = slice(1, None) if given else slice(None)
    assert difference(ours[:, :, compared], sampled[:, :, compared]) < EXACT
    if given:
        assert difference(ours[:, :, 1:], random_variants.sample(BY_NAME[NAME], model, 1)[:, :, 1:]) > 1e-2


@pytest.mark.parametrize("extra", [{}, {"denoise_mask": first_given()}], ids=["text", "first latent given"])
def test_gradients_of_the_lora_equal_finite_differences(model, monkeypatch, extra):
    import comfy.model_management as management

    management.unload_all_models()  # while it is loaded, the host leaves its schedule of noise levels in it
    host, before = pack("nodes.host.denoiser"), fingerprint(model)
    monkeypatch.setattr(host, "choose_training_dtype", lambda device: torch.float64)
    embedder = model.model.diffusion_model.rope_embedder
    forward = embedder.forward
    monkeypatch.setattr(embedder, "forward", lambda ids: forward(ids).double())
    with torch.inference_mode(False), torch.enable_grad(), host.training_denoiser(model) as denoiser:
        lora = make_lora(denoiser.spec)
        with injected(denoiser.linears(), lora):

            def total():
                sigma = torch.tensor([SIGMA])
                velocity, tokens = denoiser.velocity(NOISE.double(), sigma, CONTEXT.double(), 0, extra)
                return velocity.square().mean() + 0.1 * tokens.square().mean()

            slope, measured = compare_slopes(total, lora, draw, STEP)
    monkeypatch.undo()
    assert slope == pytest.approx(measured, rel=1e-6, abs=1e-8)
    assert fingerprint(model) == before


def make_lora(spec):
    adapter, generator = pack("smra_core.lora.adapter"), torch.Generator().manual_seed(3)
    lora = adapter.init_lora(spec, pack("smra_core.lora.plan").ALL_LAYERS, 2, generator)
    for pair in lora.values():
        pair.b.data.normal_(std=0.1, generator=generator)
        pair.double()
    return lora


@pytest.mark.parametrize(
    "train, modules", [(train_subject, 10), (train_motion, 12)], ids=["subject", "motion"]
)
def test_both_nodes_train_resume_and_leave_a_file_for_the_stock_loader(nodes, graph, train, modules, caplog):
    import nodes as host_nodes

    before = fingerprint(graph.model)
    parts = train(nodes, graph, steps=1, name="parts")
    resumed, once = (train(nodes, graph, steps=3, name=name) for name in ("parts", "once"))
    assert parts[2] == 1 and resumed[2] == once[2] == 3
    assert all(torch.equal(resumed[0][name], once[0][name]) for name in once[0])
    assert all(tensor.isfinite().all() and tensor.any() for tensor in once[0].values())
    assert fingerprint(graph.model) == before
    with caplog.at_level(logging.WARNING):
        (patched,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(graph.model, once[3], 1.0)
    assert len(patched.patches) == modules
    assert not [r for r in caplog.records if "NOT LOADED" in r.getMessage().upper()]


@pytest.mark.parametrize("error", [Canceled(), OUT_OF_MEMORY], ids=["canceled", "out of memory"])
@pytest.mark.parametrize(
    "train, given",
    [(train_subject, {}), (train_motion, {"first_frame_share": 1.0})],
    ids=["subject", "motion with its first frame"],
)
def test_a_run_that_is_broken_off_resumes_bit_for_bit(
    nodes, graph, monkeypatch, tmp_path, train, given, error
):
    before = fingerprint(graph.model)
    with monkeypatch.context() as patch, pytest.raises((Canceled, RuntimeError)):
        strike(patch, "backward", error)
        train(nodes, graph, steps=3, name="broken", **given)
    assert fingerprint(graph.model) == before and run_folder(tmp_path, "broken").step == 1
    resumed, whole = (train(nodes, graph, steps=3, name=name, **given) for name in ("broken", "whole"))
    same(resumed, whole)
    assert fingerprint(graph.model) == before


def test_a_motion_is_trained_with_its_first_frame_given(nodes, graph, monkeypatch):
    """The share of the options node reaches the MODEL as its own mask; another model refuses it."""
    denoiser = pack("nodes.host.denoiser").HostDenoiser
    velocity, masks = denoiser.velocity, []

    def listen(self, *args, extra, **options):
        masks.append(extra.get("denoise_mask"))
        return velocity(self, *args, extra=extra, **options)

    monkeypatch.setattr(denoiser, "velocity", listen)
    lora, loss_map, *_ = train_motion(nodes, graph, first_frame_share=1.0, name="given")
    assert len(masks) == 2 and all(not mask[:, :, 0].any() and mask[:, :, 1:].all() for mask in masks)
    assert all(tensor.isfinite().all() for tensor in lora.values()) and all(loss_map["mora"])


def test_a_preview_is_drawn_of_latents_of_48_channels(nodes, graph, monkeypatch):
    progress = pack("nodes.training.progress")
    drawn, draw = [], progress.draw_strip

    def keep(latents, latent_format):
        drawn.append((latents.shape, draw(latents, latent_format)))
        return drawn[-1][1]

    monkeypatch.setattr(progress, "draw_strip", keep)
    monkeypatch.setattr(progress, "PREVIEW_STEPS", 2)
    train_subject(nodes, graph, steps=1, preview_every=1, name="shown", sura_weight=0.0)
    ((shape, picture),) = drawn
    assert shape == (CHANNELS, 1, 4, 4) and picture.getextrema() != ((0, 0),) * 3


def test_the_vae_of_wan_21_and_a_size_off_the_grid_are_refused_before_anything_is_encoded(
    nodes, graph, tmp_path
):
    from random_vae import load_vae

    with pytest.raises(ValueError, match="This VAE is not Wan 2.2 5B's.*Load wan2.2_vae.safetensors"):
        train_subject(nodes, graph, vae=load_vae(tmp_path))
    for train in (train_subject, train_motion):
        with pytest.raises(ValueError, match="Size 80x64 is not a multiple of 32. Use 64x64|Use 96x64"):
            train(nodes, graph, width=80)
