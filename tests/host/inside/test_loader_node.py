"""The loader's inputs and files: what it refuses before a run, what it reads anew, and what it says."""

import os

import pytest
import random_wan
import torch
from random_wan import difference, pack, reference
from safetensors.torch import save_file
from smrabooth_pack.nodes.patching.apply_loras import apply_loras
from smrabooth_pack.nodes.patching.chosen_lora import choose_lora, describe_choice, read_file_state
from smrabooth_pack.smra_core.lora.adapter import LoraPair
from smrabooth_pack.smra_core.lora.plan import ALL_LAYERS
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule

EXACT = 2e-4
LINEAR = "blocks.0.self_attn.q"


def save_pair(path, value=1.0, adapter="", name=LINEAR):
    save_file(pair_tensors(value, adapter, name), path)


def pair_tensors(value=1.0, adapter="", name=LINEAR):
    dim = random_wan.DIM
    middle = f".{adapter}" if adapter else ""
    return {
        f"{name}.lora_A{middle}.weight": torch.ones(2, dim),
        f"{name}.lora_B{middle}.weight": torch.full((dim, 2), value),
    }


@pytest.mark.parametrize(
    "inputs, refused",
    [
        ({"subject_lora": "None", "motion_lora": "None"}, "No LoRA is chosen"),
        ({"subject_lora": "None", "motion_lora": "None", "subject_lora_model": None}, ""),
        ({"subject_lora": "None", "motion_lora": "None", "motion_lora_model": None}, ""),
        ({"subject_lora": None, "motion_lora": "None"}, ""),  # the name comes from another node
        ({"subject_lora": "dog.safetensors", "motion_lora": "None"}, ""),
        ({"subject_lora": "None", "motion_lora": "gone.safetensors"}, "'gone.safetensors' is not in models/"),
    ],
)
def test_a_loader_without_a_lora_is_refused_before_the_run(nodes, loras_folder, inputs, refused):
    save_pair(loras_folder / "dog.safetensors")
    answer = nodes["SMRASparseLoRALoader"].validate_inputs(**inputs)
    assert refused in answer if refused else answer is True


def test_a_loader_whose_names_come_from_elsewhere_says_it_too(nodes, model, caplog):
    output = nodes["SMRASparseLoRALoader"].execute(
        model, subject_lora="None", motion_lora="None", subject_strength=1.0, motion_strength=1.0
    )
    assert output.result[3].startswith("No LoRA is chosen") and "No LoRA is chosen" in caplog.text


@pytest.mark.parametrize(
    "node, inputs",
    [
        ("SMRASparseLoRALoader", {"subject_lora": "dog.safetensors", "motion_lora": "None"}),
        ("SMRASparseLoRALoader", {"subject_lora": "None", "motion_lora": "dog.safetensors"}),
        ("SMRAInspectLoRA", {"file": "dog.safetensors"}),
    ],
)
def test_a_file_replaced_under_its_name_is_read_anew(nodes, loras_folder, node, inputs):
    path = loras_folder / "dog.safetensors"
    save_pair(path)
    first = nodes[node].fingerprint_inputs(**inputs)
    assert nodes[node].fingerprint_inputs(**inputs) == first
    save_pair(path, value=2.0)
    os.utime(path, ns=(1, 1))
    second = nodes[node].fingerprint_inputs(**inputs)
    (loras_folder / "adapter_config.json").write_text("{}")
    assert len({first, second, nodes[node].fingerprint_inputs(**inputs)}) == 3
    assert nodes[node].fingerprint_inputs(**dict.fromkeys(inputs)) is not None  # connected inputs


def test_a_file_that_is_gone_has_no_state(loras_folder):
    assert [read_file_state(name) for name in (None, "None", "gone.safetensors")] == [""] * 3


def test_each_purpose_takes_its_adapter_of_the_release(model, loras_folder):
    tensors = pair_tensors(2.0, "spatial_lora") | pair_tensors(3.0, "temporal_lora")
    save_file(tensors, loras_folder / "both.safetensors")
    for purpose, value in (("subject", 2.0), ("motion", 3.0)):
        for chosen in (
            choose_lora(purpose, "both.safetensors", None, ALL_LAYERS, model),
            choose_lora(purpose, "None", tensors, ALL_LAYERS, model),
        ):
            assert chosen.lora[LINEAR].b.unique() == value


def test_a_file_of_two_experts_is_asked_about(model, loras_folder):
    tensors = {
        f"{prefix}.{name}": tensor
        for prefix, value in (("transformer", 2.0), ("transformer_2", 3.0))
        for name, tensor in pair_tensors(value).items()
    }
    save_file(tensors, loras_folder / "both.safetensors")
    with pytest.raises(ValueError, match="LoRAs of two experts of Wan 2.2"):
        choose_lora("subject", "both.safetensors", None, ALL_LAYERS, model)
    for expert, value in (("high", 2.0), ("low", 3.0)):
        chosen = choose_lora("subject", "both.safetensors", None, ALL_LAYERS, model, expert)
        assert chosen.lora[LINEAR].b.unique() == value


def test_the_report_accounts_for_the_file(model, loras_folder):
    others = {f"vace_blocks.{n}.ffn.0.lora_A.weight": torch.ones(1) for n in range(3)}
    save_file(pair_tensors() | others, loras_folder / "dog.safetensors")
    chosen = choose_lora("subject", "dog.safetensors", None, ALL_LAYERS, model)
    text = "\n".join(describe_choice(chosen, chosen.schedule(Strengths.from_value(1.0)), merged=1.0))
    assert "2 of 5 tensors are used, for 1 linear of WAN's blocks. Not used: other blocks" in text
    assert "scale 1 is assumed" in text


@pytest.mark.parametrize("constant", ["merge", "on the fly"])
@pytest.mark.parametrize("path", ["ffn.0", "ffn.2"])
def test_a_change_of_a_whole_weight_is_applied(model, loras_folder, constant, path):
    name = f"blocks.1.{path}"
    shape = (random_wan.FFN, random_wan.DIM) if path == "ffn.0" else (random_wan.DIM, random_wan.FFN)
    diff = 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_file({f"diffusion_model.{name}.diff": diff}, loras_folder / "whole.safetensors")
    chosen = choose_lora("subject", "whole.safetensors", None, ALL_LAYERS, model)
    strengths = Strengths.from_value(0.5)
    ours = apply_loras(model, [ScheduledLora(chosen.lora, strengths)], StrengthSchedule(0.7), constant).model
    wanted = reference(model, [({name: (torch.eye(shape[1]), diff)}, 0.5, 0.5)], 0.0)
    found = random_wan.sample(ours, steps=3)
    assert difference(found, random_wan.sample(wanted, steps=3)) < EXACT
    assert difference(found, random_wan.sample(model, steps=3)) > 10 * EXACT


FALLING = [1.0, 0.9, 0.8, 0.7, 0.5, 0.3, 0.1]


@pytest.mark.parametrize(
    "levels",
    [FALLING[:0:-1], [0.1, *FALLING], [0.3, 0.7, 0.8, 0.9]],  # at an end of 1 the host divides by zero
    ids=["rising", "resampling", "rising part"],
)
def test_a_run_of_any_order_switches_by_its_levels(model, loras, levels):
    strengths = Strengths(0.4, 0.8), Strengths.from_value(1.0)
    scheduled = [
        ScheduledLora({name: LoraPair(a, b) for name, (a, b) in one.items()}, strength)
        for one, strength in zip(loras, strengths, strict=True)
    ]
    ours = apply_loras(model, scheduled, StrengthSchedule(0.7), "on the fly").model
    wanted = reference(model, [(loras[0], 0.4, 0.8), (loras[1], 1.0, 1.0)], 0.71)
    found = sample_over(ours, levels)
    size = found.std().item()  # a run that rises grows far beyond 1
    assert difference(found, sample_over(wanted, levels)) < EXACT * size
    late = reference(model, [(loras[0], 0.8, 0.8), (loras[1], 1.0, 1.0)], 0.71)
    assert difference(found, sample_over(late, levels)) > 10 * EXACT * size


def sample_over(model, levels):
    import comfy.sample
    import comfy.samplers

    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(random_wan.LATENT, generator=generator)
    positive, negative = (
        [[torch.randn(1, 12, random_wan.TEXT_DIM, generator=generator), {}]] for _ in range(2)
    )
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, noise, 2.0, comfy.samplers.sampler_object("euler"), torch.tensor(levels), positive,
            negative,
            torch.zeros(random_wan.LATENT), disable_pbar=True, seed=7,
        )  # fmt: skip


def test_the_scheduler_says_what_does_not_follow_a_rising_run(nodes):
    widgets = {
        "t_point": "sigma", "step": 15, "of_steps": 50, "reference_shift": 1.0, "share": 0.3, "sigma": 0.7,
        "preset": "paper", "run_scheduler": "simple", "run_steps": 50,
    }  # fmt: skip
    make = pack("nodes").NODE_CLASS_MAPPINGS["SMRATPointScheduler"].execute
    rising = make(sigmas=torch.tensor(FALLING[::-1]), **widgets).result
    assert rising[1] == 2 and rising[2].startswith("early strengths in steps 5 to 6 of 6")
    assert "subject_keyframes do not follow it" in rising[2]
    falling = make(sigmas=torch.tensor([*FALLING, 0.0]), **widgets).result
    assert falling[1] == 3 and falling[2] == "switch at step 3 of 7, sigma 0.700 (T_point at sigma 0.70)"
