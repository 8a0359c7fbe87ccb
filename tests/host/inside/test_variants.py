"""The Sparse LoRA Loader on every WAN variant that the host knows, against overwritten weights."""

import pytest
import random_variants
import torch
from random_variants import BY_NAME, VARIANTS, sample
from random_wan import difference, leftovers, reference
from smrabooth_pack.nodes.patching.apply_loras import apply_loras
from smrabooth_pack.smra_core.lora.adapter import LoraPair
from smrabooth_pack.smra_core.lora.plan import MOTION, SUBJECT
from smrabooth_pack.smra_core.lora.reader import parse_lora
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule
from smrabooth_pack.smra_core.wan.spec import Role, parse_linear

EXACT = 1e-4
STEPS, LATE_BELOW = 2, 0.51
"""Levels 1 and 0.5: the one nearest to 0.7 is 0.5."""
SUBJECT_STRENGTHS, MOTION_STRENGTHS = Strengths(0.4, 0.8), Strengths(1.0, 0.5)

NAMES = [variant.name for variant in VARIANTS]


def roles_of(plan):
    return [role.value for role in Role if role in plan.roles]


def with_paper_plans(variant, model):
    """Our MODEL with a LoRA of each of the paper's plans, and what the reference takes for the same."""
    strengths = SUBJECT_STRENGTHS, MOTION_STRENGTHS
    factors = [
        random_variants.make_lora(variant, roles_of(plan), 1 + i) for i, plan in enumerate((SUBJECT, MOTION))
    ]
    loras = [
        ScheduledLora({key: LoraPair(a, b) for key, (a, b) in pairs.items()}, strength)
        for pairs, strength in zip(factors, strengths, strict=True)
    ]
    wanted = [(pairs, s.early, s.late) for pairs, s in zip(factors, strengths, strict=True)]
    return apply_loras(model, loras, StrengthSchedule(0.7)), wanted


def without_kept_text(model):
    """A clone whose causal evaluations compute the text's keys and values anew, each with its own weights."""
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor, x, t, c_concat=None, c_crossattn=None, control=None, options=None, **kwargs):
        for cache in ((options or {}).get("ar_state") or {}).get("crossattn_caches", ()):
            cache["is_init"] = False
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "text", wrapper)
    return clone


@pytest.mark.parametrize("name", NAMES)
def test_a_switched_run_with_the_papers_plans_equals_overwritten_weights(load_variant, name):
    variant, (model, _) = BY_NAME[name], load_variant(name)
    assert type(model.model).__name__ == variant.kind
    sampler = "ar_video" if name == "CausalAR" else "euler"
    factors = [
        random_variants.make_lora(variant, roles_of(plan), 1 + i) for i, plan in enumerate((SUBJECT, MOTION))
    ]
    strengths = SUBJECT_STRENGTHS, MOTION_STRENGTHS
    loras = [
        ScheduledLora({key: LoraPair(a, b) for key, (a, b) in pairs.items()}, strength)
        for pairs, strength in zip(factors, strengths, strict=True)
    ]
    result = apply_loras(model, loras, StrengthSchedule(0.7))
    assert result.merged == (SUBJECT_STRENGTHS.late, MOTION_STRENGTHS.late)
    ours = sample(variant, result.model, STEPS, sampler)
    wanted = [(pairs, s.early, s.late) for pairs, s in zip(factors, strengths, strict=True)]
    exact = sample(variant, without_kept_text(reference(model, wanted, LATE_BELOW)), STEPS, sampler)
    assert torch.isfinite(exact).all()
    assert difference(ours, exact) < EXACT
    unswitched = without_kept_text(reference(model, wanted, -1.0))
    assert difference(ours, sample(variant, unswitched, STEPS, sampler)) > 100 * EXACT
    assert leftovers(model) == []


def foreign_lora(state_names, flat: bool):
    """A LoRA of another trainer on every linear of a model, and changes of its norms and biases."""
    linears = [name.removesuffix(".weight") for name in state_names if name.endswith(".weight")]
    tensors = {}
    for name in linears:
        prefix = "lora_unet_" + name.replace(".", "_") if flat else f"diffusion_model.{name}"
        down, up = ("lora_down", "lora_up") if flat else ("lora_A", "lora_B")
        tensors[f"{prefix}.{down}.weight"] = torch.zeros(2, random_variants.DIM)
        tensors[f"{prefix}.{up}.weight"] = torch.zeros(random_variants.DIM, 2)
        tensors[f"{prefix}.diff_b"] = torch.zeros(random_variants.DIM)
    return tensors, linears


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flat", [False, True], ids=["native", "kohya"])
def test_what_a_foreign_lora_has_beside_the_linears_of_the_blocks_is_listed(load_variant, name, flat):
    model, state = load_variant(name)
    tensors, linears = foreign_lora(list(state), flat)
    read = parse_lora(tensors, "foreign")
    own = [f"blocks.{i}.{path}" for i in range(BY_NAME[name].blocks) for role in Role for path in role.paths]
    assert sorted(read.lora) == sorted(own)
    assert all(parse_linear(linear).role in Role for linear in read.lora)
    assert len(read.ignored) == 3 * len(linears) - 2 * len(own)
    apply_loras(model, [ScheduledLora(read.lora, Strengths(0.4, 0.8))], StrengthSchedule(0.7))


@pytest.mark.parametrize("dtype", ["default", "int8"])
def test_animate_2s_cache_of_the_pose_video_follows_the_switch(load_variant, dtype):
    """The cache holds what passed through the LoRA at the early strengths; the reference has no cache."""
    from comfy_extras import nodes_wan

    if not hasattr(nodes_wan, "WanAnimate2Cache"):
        pytest.skip("This version of ComfyUI has no WanAnimate2Cache.")
    variant, (model, _) = BY_NAME["Animate-2"], load_variant("Animate-2")
    result, wanted = with_paper_plans(variant, model)
    (kept,) = nodes_wan.WanAnimate2Cache.execute(result.model, "cpu", dtype).args
    exact = sample(variant, reference(model, wanted, LATE_BELOW), STEPS)
    tolerance = EXACT if dtype == "default" else 0.05
    assert difference(sample(variant, kept, STEPS), exact) < tolerance
    assert difference(sample(variant, kept, STEPS), exact) < tolerance


def test_ti2v_5b_with_a_given_first_frame(load_variant):
    """Its first latent has timestep 0 in every evaluation; the strengths follow the run's own level."""
    variant, (model, _) = BY_NAME["TI2V-5B"], load_variant("TI2V-5B")
    result, wanted = with_paper_plans(variant, model)
    mask = torch.ones(1, 1, random_variants.FRAMES, random_variants.HEIGHT, random_variants.WIDTH)
    mask[:, :, 0] = 0
    ours = sample(variant, result.model, STEPS, noise_mask=mask)
    exact = sample(variant, reference(model, wanted, LATE_BELOW), STEPS, noise_mask=mask)
    assert difference(ours, exact) < EXACT
    assert difference(ours, sample(variant, result.model, STEPS)) > 100 * EXACT
