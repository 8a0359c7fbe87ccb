"""The Sparse LoRA Pair Loader on two experts: strengths at every evaluation, and two loaders beside it."""

import json

import pytest
import random_wan
import torch
from random_wan import difference, sample, sample_on
from safetensors.torch import save_file
from strength_probe import with_probe

SHIFT = 5.0
SUBJECT, MOTION = "dog_high_noise.safetensors", "walk.safetensors"
PROBED = {"subject": "blocks.0.self_attn.q", "motion": "blocks.0.self_attn.v"}
"""Linears that only one of the two LoRAs is on."""
CLOSE = 2e-4


@pytest.fixture(scope="module")
def states():
    return {"high": random_wan.dit_state(seed=0), "low": random_wan.dit_state(seed=5)}


@pytest.fixture
def experts(states):
    return [random_wan.with_shift(random_wan.load(state), SHIFT) for state in states.values()]


@pytest.fixture
def files(loras_folder):
    """A pair of subject LoRAs and one motion LoRA for both experts, where the host looks for LoRAs."""
    tensors = {
        ("subject", "high"): random_wan.lora_tensors(random_wan.SUBJECT_LAYERS, seed=1),
        ("subject", "low"): random_wan.lora_tensors(random_wan.SUBJECT_LAYERS, seed=2),
        ("motion", "high"): random_wan.lora_tensors(random_wan.MOTION_LAYERS, seed=3),
    }
    tensors["motion", "low"] = tensors["motion", "high"]
    save(tensors["subject", "high"], loras_folder / SUBJECT)
    save(tensors["subject", "low"], loras_folder / "dog_low_noise.safetensors")
    save(tensors["motion", "high"], loras_folder / MOTION)
    return tensors


def save(tensors, path, base_model=""):
    named = {}
    for name, (a, b) in tensors.items():
        named[f"diffusion_model.{name}.lora_A.weight"] = a.contiguous()
        named[f"diffusion_model.{name}.lora_B.weight"] = b.contiguous()
    save_file(named, path, {"smrabooth.base_model": json.dumps(base_model)})


def run_scheduler(nodes, model, t_point, steps, sigma=0.7):
    """(schedule, switch_step, report) of the node for a run of this MODEL."""
    values = {
        "t_point": t_point, "step": 15, "of_steps": 50, "reference_shift": 1.0, "share": 0.3, "sigma": sigma,
        "preset": "paper", "run_scheduler": "simple", "run_steps": steps,
    }  # fmt: skip
    return nodes["SMRATPointScheduler"].execute(model=model, **values).result[:3]


CHOSEN = {"subject_strength": 1.0, "motion_lora": MOTION, "motion_strength": 1.0}


def load_pair(nodes, experts, schedule, subject=SUBJECT, options=None):
    high, low = experts
    return nodes["SMRASparseLoRAPairLoader"].execute(
        model_high_noise=high, model_low_noise=low, subject_lora=subject, schedule=schedule,
        loader_options=options, **CHOSEN,
    ).result  # fmt: skip


def load_single(nodes, model, schedule, subject, options=None):
    return (
        nodes["SMRASparseLoRALoader"]
        .execute(model=model, subject_lora=subject, schedule=schedule, loader_options=options, **CHOSEN)
        .result
    )


def load_two(nodes, experts, schedule, options=None):
    """The outputs of two single loaders, each with its expert's file."""
    names = SUBJECT, "dog_low_noise.safetensors"
    return [load_single(nodes, *pair, options) for pair in zip(experts, [schedule] * 2, names, strict=True)]


def sample_pair(models, steps, cut, **options):
    """The latents of two KSampler (Advanced), one for each expert."""
    high, low = models
    first = sample(high, steps=steps, start_step=0, last_step=cut, force_full_denoise=False, **options)
    return sample_on(low, first, steps=steps, start_step=cut, last_step=steps, force_full_denoise=True)


def find_measures(state, files, side):
    """What the probe of an expert takes for each LoRA."""
    weights = {kind: (state[f"{name}.weight"], state[f"{name}.bias"]) for kind, name in PROBED.items()}
    return {kind: (name, *weights[kind], *files[kind, side][name]) for kind, name in PROBED.items()}


def measured(models, states, files, steps, cut, **options):
    """(sigma, subject, motion) at every evaluation of the high part and of the low part."""
    logs = {"high": [], "low": []}
    probes = [
        with_probe(model, find_measures(states[side], files, side), log.append)
        for model, (side, log) in zip(models, logs.items(), strict=True)
    ]
    sample_pair(probes, steps, cut, **options)
    return logs


@pytest.mark.parametrize("constant", ["auto", "on the fly"])
@pytest.mark.parametrize("steps", [4, 20])
def test_the_high_expert_has_the_early_strengths_and_the_low_one_the_late(
    nodes, experts, states, files, steps, constant
):
    schedule, cut, report = run_scheduler(nodes, experts[0], "hand-over of the experts", steps)
    assert cut == steps // 2 and schedule.t_point == pytest.approx(5 / 6, abs=1e-3)
    assert f"hand-over of the experts at step {cut} of {steps}" in report
    options = choose_constant(nodes, constant)
    *models, _ = load_pair(nodes, experts, schedule, options=options)
    logs = measured(models, states, files, steps, cut, cfg=1.0)
    assert [line[1:] for line in logs["high"]] == [(0.4, 1.0)] * cut
    assert logs["low"] and all(line[1:] == (0.8, 1.0) for line in logs["low"])
    lowest, highest = logs["high"][-1][0], logs["low"][0][0]
    assert lowest > schedule.t_point >= highest - 1e-3


def choose_constant(nodes, constant):
    (options,) = nodes["SMRALoaderOptions"].execute(
        subject_layers="paper", subject_custom_layers="q", motion_layers="paper", motion_custom_layers="v",
        constant_lora=constant,
    ).result  # fmt: skip
    return options


@pytest.mark.parametrize("boundary", [None, 0.875, 0.9], ids=["half", "T2V", "I2V"])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_t_point_lies_where_the_experts_hand_over(nodes, model, shift, boundary):
    """For 4 to 50 steps of the host's own table, cut as KSampler (Advanced) cuts it."""
    import comfy.samplers
    from smrabooth_pack.smra_core.lora.schedule import TPoint

    shifted = random_wan.with_shift(model, shift)
    sampling = shifted.get_model_object("model_sampling")
    kind = "hand-over of the experts" if boundary is None else "hand-over at sigma"
    for steps in (4, 6, 8, 20, 50):
        levels = comfy.samplers.calculate_sigmas(sampling, "simple", steps).tolist()
        oracle = steps // 2 if boundary is None else sum(level >= boundary for level in levels)
        schedule, cut, _ = run_scheduler(nodes, shifted, kind, steps, sigma=boundary or 0.7)
        t_point = TPoint(schedule.t_point)
        high, low = levels[: cut + 1], levels[cut:]
        assert cut == oracle
        assert all(sigma > t_point.boundary(high) for sigma in high[:-1])
        assert all(sigma <= t_point.boundary(low) for sigma in low[:-1])


@pytest.mark.parametrize("steps", [4, 20])
def test_two_single_loaders_give_the_same_video_bit_for_bit(nodes, experts, files, steps):
    schedule, _, _ = run_scheduler(nodes, experts[0], "sigma", steps, sigma=0.7)
    cut = steps // 2
    *pair, _ = load_pair(nodes, experts, schedule)
    two = [result[0] for result in load_two(nodes, experts, schedule)]
    video = sample_pair(pair, steps, cut)
    assert torch.equal(video, sample_pair(two, steps, cut))
    assert difference(video, sample_pair(experts, steps, cut)) > 0.02


@pytest.mark.parametrize("constant", ["auto", "on the fly"])
def test_at_the_hand_over_two_single_loaders_give_the_same_video(nodes, experts, files, constant):
    """Bit for bit where both add the LoRA while sampling, and as their plain models where it is merged."""
    steps, cut = 4, 2
    schedule, _, _ = run_scheduler(nodes, experts[0], "hand-over of the experts", steps)
    options = choose_constant(nodes, constant)
    *pair, report = load_pair(nodes, experts, schedule, options=options)
    high, low = load_two(nodes, experts, schedule, options)
    video = sample_pair(pair, steps, cut)
    assert torch.equal(video, sample_pair([high[1], low[2]], steps, cut))
    switched = sample_pair([high[0], low[0]], steps, cut)
    assert torch.equal(video, switched) if constant == "on the fly" else difference(video, switched) < CLOSE
    assert report.count("merged") == (4 if constant == "auto" else 0)


def test_the_report_names_the_file_and_the_strengths_of_each_expert(nodes, experts, files):
    schedule, _, _ = run_scheduler(nodes, experts[0], "hand-over of the experts", 20)
    report = load_pair(nodes, experts, schedule, subject="dog_low_noise.safetensors")[-1]
    high, _, low = report.partition("low-noise expert:")
    for part, file, strength, side in (
        (high, "dog_high_noise", "0.40", "early"),
        (low, "dog_low_noise", "0.80", "late"),
    ):
        assert f"subject: {file}.safetensors" in part and f"strength {strength}" in part
        assert f"motion: {MOTION}" in part and "strength 1.00" in part
        assert f"(hand-over of the experts), {side} strengths" in part
    assert report.startswith("high-noise expert:") and "assumed: model_high_noise" in report


def test_what_cannot_be_right_is_said(nodes, experts, files, tmp_path):
    high, _ = experts
    save(files["subject", "low"], tmp_path / "loras" / "cat.safetensors", "wan2.2_t2v_low_noise_14B")
    report = load_pair(nodes, [high, high.clone()], None, subject="cat.safetensors")[-1]
    assert "trained on wan2.2_t2v_low_noise_14B, the low-noise expert" in report
    assert "applied to the high-noise expert" in report and "both inputs hold the same checkpoint" in report


def test_half_of_a_pair_is_refused(nodes, experts, files, tmp_path):
    (tmp_path / "loras" / "dog_low_noise.safetensors").unlink()
    import folder_paths

    folder_paths.filename_list_cache.clear()
    with pytest.raises(ValueError, match="dog_low_noise.safetensors for the other expert is not there"):
        load_pair(nodes, experts, None)


def test_a_missing_half_is_said_before_anything_runs_and_a_replaced_half_is_read_anew(nodes, files, tmp_path):
    import folder_paths

    node, other = nodes["SMRASparseLoRAPairLoader"], tmp_path / "loras" / "dog_low_noise.safetensors"
    assert node.validate_inputs(SUBJECT, MOTION) is True
    before = node.fingerprint_inputs(SUBJECT, MOTION)
    other.write_bytes(other.read_bytes() + b" ")
    assert node.fingerprint_inputs(SUBJECT, MOTION) != before
    other.unlink()
    folder_paths.filename_list_cache.clear()
    assert "dog_low_noise.safetensors for the other expert is not there" in node.validate_inputs(
        SUBJECT, MOTION
    )
    assert "is not in models/loras" in node.validate_inputs("gone.safetensors", MOTION)
    assert isinstance(node.validate_inputs("None", "None"), str)


def test_a_file_of_both_experts_gives_each_its_own_part(nodes, experts, states, files, tmp_path):
    """In diffusers' names `transformer` is the high-noise expert and `transformer_2` the low-noise one."""
    named = {}
    for prefix, side in (("transformer", "high"), ("transformer_2", "low")):
        for name, (a, b) in files["subject", side].items():
            named[f"{prefix}.{name}.lora_A.weight"] = a.contiguous()
            named[f"{prefix}.{name}.lora_B.weight"] = b.contiguous()
    save_file(named, tmp_path / "loras" / "both.safetensors")
    schedule, cut, _ = run_scheduler(nodes, experts[0], "hand-over of the experts", 4)
    *models, _ = load_pair(nodes, experts, schedule, subject="both.safetensors")
    logs = measured(models, states, files, 4, cut, cfg=1.0)
    assert [line[1:] for line in logs["high"]] == [(0.4, 1.0)] * cut
    assert {line[1:] for line in logs["low"]} == {(0.8, 1.0)}
