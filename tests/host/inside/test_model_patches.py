"""What other nodes put on a MODEL is trained with, or refused by its name, or said to take no part."""

import pytest
import torch
from random_wan import DIM, pack
from training_gradients import fingerprint
from training_graph import train_motion, train_subject

LINEAR = "blocks.1.cross_attn.q"


def train(nodes, graph, model, name, **changes):
    """Two steps; their losses as printed, and the LoRA."""
    made = train_subject(nodes, graph, model=model, steps=2, name=name, **changes)
    return made[1]["region"], made[0]


def patched_attention(model, forward):
    """A clone whose cross-attention of block 0 is computed by `forward(plain, x, context, **options)`."""
    clone = model.clone()
    attention = clone.model.diffusion_model.blocks[0].cross_attn
    plain = type(attention).forward.__get__(attention)
    clone.add_object_patch(
        "diffusion_model.blocks.0.cross_attn.forward", lambda x, context, **k: forward(plain, x, context, **k)
    )
    return clone


def raise_in(place):
    """A model that raises in one of the blocks, and where it raises: in forward, or when it is recomputed."""

    def forward(plain, x, context, **options):
        is_first = not torch._C._current_graph_task_id() >= 0
        if (place == "forward") == is_first:
            raise ValueError("any error of another pack")
        return plain(x, context, **options)

    return forward


def hold_an_inference_tensor(plain, x, context, **options):
    with torch.inference_mode():
        held = torch.ones(DIM)
    return plain(x, context, **options) * held


FAILURES = {
    "forward": raise_in("forward"),
    "recomputing": raise_in("recomputing"),
    "an inference tensor": hold_an_inference_tensor,
    "a shape": lambda plain, x, context, **options: plain(x[..., :-1], context, **options),
    "a device": lambda plain, x, context, **options: plain(x, context, **options) + x.to("meta"),
}


@pytest.fixture
def recomputed(monkeypatch):
    """No memory for activations, so that every block but the last is recomputed."""
    monkeypatch.setattr(pack("smra_core.training.job"), "measure_spare_memory", lambda *given: 0.0)


@pytest.mark.parametrize("kind", FAILURES)
def test_a_patch_that_fails_is_named_and_spoils_no_later_training(nodes, graph, recomputed, kind):
    before, expected = fingerprint(graph.model), train(nodes, graph, graph.model, "clean")
    with pytest.raises(RuntimeError, match=r"<lambda> in .*test_model_patches.py|test_model_patches") as kept:
        train(nodes, graph, patched_attention(graph.model, FAILURES[kind]), "patched")
    assert "a patch or node of another pack" in str(kept.value) and "from before the node" in str(kept.value)
    again = train(nodes, graph, graph.model, "again")
    assert again[0] == expected[0] and fingerprint(graph.model) == before


@pytest.mark.parametrize("place", ["vae", "flow net"])
def test_an_error_of_another_pack_outside_of_the_model_is_named_too(nodes, graph, monkeypatch, place):
    expected = train_motion(nodes, graph, name="clean")[1]

    def fail(*args, **kwargs):
        raise RuntimeError("a hook of another pack")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=r"stopped by .*fail in .*hook of"):
        if place == "vae":
            patch.setattr(type(graph.vae), "encode", fail)
            patch.setattr(graph, "frames", graph.frames.flip(2))  # not in the cache
        else:
            sea_raft = pack("smra_core.encoders.sea_raft").SeaRaft
            patch.setattr(sea_raft, "_compute_chunk_flow", fail)
        train_motion(nodes, graph, name="broken", frame_count=5)
    assert train_motion(nodes, graph, name="again")[1] == expected


def test_an_object_patch_is_trained_with_and_makes_another_run(nodes, graph):
    def halved(plain, x, context, **options):
        return plain(x, context, **options) * 0.5

    plain, doubled = train(nodes, graph, graph.model, "x"), patched_attention(graph.model, halved)
    assert train(nodes, graph, doubled, "x")[0] != plain[0]
    identify = pack("nodes.host.model_identity").fingerprint_model
    assert identify(doubled) == identify(patched_attention(graph.model, halved)) != identify(graph.model)


def bypass(graph, strength):
    import comfy.sd

    with torch.inference_mode():
        generator = torch.Generator().manual_seed(3)
        lora = {
            f"diffusion_model.{LINEAR}.lora_{half}.weight": torch.randn(shape, generator=generator) * 0.3
            for half, shape in (("A", (2, DIM)), ("B", (DIM, 2)))
        }
        merged, _ = comfy.sd.load_lora_for_models(graph.model, None, lora, strength, 0.0)
        beside, _ = comfy.sd.load_bypass_lora_for_models(graph.model, None, lora, strength, 0.0)
    return merged, beside


def test_a_lora_that_runs_beside_the_weights_is_refused_by_name(nodes, graph):
    import comfy.sd

    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("This ComfyUI has no bypass LoRAs.")
    with pytest.raises(ValueError, match="injection 'injection bypass_lora'"):
        train(nodes, graph, bypass(graph, 0.7)[1], "x")


def test_a_replaced_forward_of_a_trained_linear_is_refused_by_name(nodes, graph):
    model = graph.model.clone()
    model.add_object_patch(f"diffusion_model.{LINEAR}.forward", nothing)
    with pytest.raises(ValueError, match="object patch .*cross_attn.q.forward"):
        train(nodes, graph, model, "x")


def test_rope_options_hold_in_training(nodes, graph):
    scaled = graph.model.clone()
    if not hasattr(scaled, "set_model_rope_options"):
        pytest.skip("This ComfyUI has no rope options.")
    scaled.set_model_rope_options(2.0, 0.0, 2.0, 0.0, 1.0, 0.0)
    assert train(nodes, graph, scaled, "x")[0] != train(nodes, graph, graph.model, "x")[0]


def nothing(executor, *args, **kwargs):
    return executor(*args, **kwargs)


def with_patch(graph, kind):
    clone = graph.model.clone()
    if kind in ("apply_model", "diffusion_model", "outer_sample", "predict_noise", "calc_cond_batch"):
        clone.add_wrapper_with_key(kind, "other pack", nothing)
    elif kind == "wrapper in the options":
        wrappers = clone.model_options["transformer_options"].setdefault("wrappers", {})
        wrappers["diffusion_model"] = {"other pack": [nothing]}
    elif kind == "on_pre_run":
        clone.add_callback_with_key(kind, "other pack", nothing)
    elif kind == "unet":
        clone.set_model_unet_function_wrapper(nothing)
    elif kind == "attn2":
        clone.set_model_attn2_patch(nothing)
    elif kind == "double_block":
        clone.set_model_patch_replace(nothing, "dit", "double_block", 0)
    elif kind == "attention":
        clone.model_options["transformer_options"]["optimized_attention_override"] = nothing
    elif kind == "transformer option":
        clone.model_options["transformer_options"]["other"] = nothing
    elif kind == "model option":
        clone.model_options["other"] = nothing
    return clone


REFUSED = [
    "apply_model", "diffusion_model", "outer_sample", "predict_noise", "calc_cond_batch",
    "wrapper in the options", "on_pre_run", "unet", "attn2", "double_block", "attention",
    "transformer option", "model option",
]  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_acts_only_while_sampling_is_refused_by_name_before_anything_runs(nodes, graph, kind):
    model = with_patch(graph, kind)
    for train_lora in (train_subject, train_motion):
        with pytest.raises(ValueError, match=r"only while ComfyUI samples.*test_model_patches.nothing"):
            train_lora(nodes, graph, model=model, vae=graph.vae)


def test_our_own_loader_is_refused_by_its_name(nodes, graph, loras, tmp_path):
    adapter, schedule = pack("smra_core.lora.adapter"), pack("smra_core.lora.schedule")
    pair = adapter.LoraPair(torch.ones(2, DIM), torch.ones(DIM, 2))
    lora = schedule.ScheduledLora({LINEAR: pair}, schedule.Strengths(0.4, 0.8))
    apply = pack("nodes.patching.apply_loras").apply_loras
    patched = apply(graph.model, [lora], schedule.StrengthSchedule()).model
    with pytest.raises(ValueError, match=r"SMRA Sparse LoRA Loader adds while sampling.*'merge'"):
        train_subject(nodes, graph, model=patched)


def easy_cache(model):
    from comfy_extras import nodes_easycache

    return nodes_easycache.EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False).args[0]


def context_windows(model):
    from comfy_extras import nodes_context_windows as windows

    node = windows.WanContextWindowsManualNode
    values = {item.id: item.default for item in node.define_schema().inputs if hasattr(item, "default")}
    values = {key: value for key, value in values.items() if value is not None}
    first = next(item.options[0] for item in node.define_schema().inputs if item.id == "context_schedule")
    return node.execute(
        **{"context_schedule": first, "fuse_method": "pyramid", **values, "model": model}
    ).args[0]


def compiled(model):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    clone = model.clone()
    set_torch_compile_wrapper(clone, "eager")
    return clone


def shifted(model):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, 3.0)[0]


def guided(model):
    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(nothing)
    return clone


def with_host_kernel(model):
    from comfy.ldm.modules.attention import attention_sub_quad

    clone = model.clone()
    clone.set_model_optimized_attention(attention_sub_quad)
    return clone


@pytest.mark.parametrize("change", [easy_cache, context_windows, compiled, shifted, guided, with_host_kernel])
def test_what_only_saves_time_or_steers_sampling_changes_nothing(nodes, graph, change, caplog):
    with torch.inference_mode():
        try:
            model = change(graph.model)
        except (ImportError, AttributeError) as error:
            pytest.skip(f"This ComfyUI has none: {error}")
    same_run = "x"
    expected = train(nodes, graph, graph.model, same_run)
    notes = pack("nodes.host.model_patches").check_patches(model)
    assert len(notes) == (0 if change in (shifted, with_host_kernel) else 1)
    identify = pack("nodes.host.model_identity").fingerprint_model
    assert identify(model) == identify(graph.model)
    assert train(nodes, graph, model, "y")[0] == expected[0]


@pytest.mark.parametrize("key", ["hooks", "control"])
def test_a_prompt_that_brings_loras_or_a_controlnet_is_refused(nodes, graph, key):
    positive = [[graph.positive[0][0], {key: object()}]]
    with pytest.raises(ValueError, match="'positive' carries .* training would be without it"):
        train_subject(nodes, graph, positive=positive)
