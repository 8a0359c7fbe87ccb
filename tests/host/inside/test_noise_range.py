"""Noise ranges in the graph: files are found by expert, and LoRAs applied only where they were trained."""

import json

import pytest
import random_wan
from random_wan import difference, sample, sample_on
from safetensors import safe_open
from safetensors.torch import save_file
from strength_probe import with_probe
from training_graph import train_motion, train_subject

SHIFT, STEPS, CUT = 5.0, 20, 10
MOTION, HIGH, LOW = "motion 0.6 to 1.0", "high-noise expert 0.875 to 1.0", "low-noise expert 0.0 to 0.875"
LINEAR = "blocks.0.self_attn.v"
NONE = {"subject_lora": "None", "subject_strength": 1.0, "motion_strength": 1.0}


@pytest.fixture
def shifted(state):
    return random_wan.with_shift(random_wan.load(state), SHIFT)


@pytest.fixture
def factors():
    return random_wan.lora_tensors(random_wan.MOTION_LAYERS, seed=3)


@pytest.fixture
def save(loras_folder, factors):
    """A function that saves the LoRA under a name and a noise range, where the host looks for LoRAs."""
    import folder_paths

    def write(name, noise_range):
        named = {}
        for linear, (a, b) in factors.items():
            named[f"diffusion_model.{linear}.lora_A.weight"] = a.contiguous()
            named[f"diffusion_model.{linear}.lora_B.weight"] = b.contiguous()
        save_file(named, loras_folder / name, {"smrabooth.noise_range": json.dumps(noise_range)})
        folder_paths.filename_list_cache.clear()
        return name

    return write


def choose_options(nodes, **values):
    layers = {"subject_layers": "paper", "subject_custom_layers": "q", "motion_layers": "paper"}
    values = {"constant_lora": "auto", **layers, "motion_custom_layers": "v", **values}
    return nodes["SMRALoaderOptions"].execute(**values).result[0]


def load(nodes, model, file, **options):
    node = nodes["SMRASparseLoRALoader"]
    result = node.execute(model, motion_lora=file, loader_options=choose_options(nodes, **options), **NONE)
    return result.result[0], result.result[3]


def load_pair(nodes, model, file, **options):
    """Both experts are the same random model; the report and the two MODELs."""
    return nodes["SMRASparseLoRAPairLoader"].execute(
        model_high_noise=model, model_low_noise=model, motion_lora=file,
        loader_options=choose_options(nodes, **options), **NONE,
    ).result  # fmt: skip


def measure(models, state, factors):
    """(sigma, strength) at every evaluation of one sampler, or of two that hand over after half the steps."""
    log = []
    taken = {"motion": (LINEAR, state[f"{LINEAR}.weight"], state[f"{LINEAR}.bias"], *factors[LINEAR])}
    first, *others = (with_probe(model, taken, log.append) for model in models)
    if not others:
        sample(first, steps=STEPS, cfg=1.0)
        return log
    latents = sample(first, steps=STEPS, cfg=1.0, start_step=0, last_step=CUT, force_full_denoise=False)
    sample_on(others[0], latents, steps=STEPS, start_step=CUT, last_step=STEPS, force_full_denoise=True)
    return log


def by_level(log):
    """The strength at each noise level; both prompts of a guided step have the same."""
    return dict(sorted(set(log), reverse=True))


@pytest.mark.parametrize("noise_range, low", [(MOTION, 0.6), (HIGH, 0.875)])
def test_in_one_sampler_the_strength_is_0_below_the_range(
    nodes, shifted, state, save, factors, noise_range, low
):
    model, report = load(nodes, shifted, save("walk.safetensors", noise_range))
    strengths = by_level(measure([model], state, factors))
    assert len(strengths) == STEPS and set(strengths.values()) == {0.0, 1.0}
    assert all(strength == (sigma >= low) for sigma, strength in strengths.items())
    assert f"trained at the noise range {noise_range}: applied there alone" in report
    assert report.count("On one model without experts noise_range 'everywhere' of SMRA Loader Options") == 1
    assert "added on the fly" in report


def test_told_otherwise_it_is_applied_everywhere_and_merged(nodes, shifted, state, save, factors):
    file = save("walk.safetensors", MOTION)
    model, report = load(nodes, shifted, file, noise_range="everywhere")
    assert "applied at all noise levels" in report and "merged" in report
    assert "transfers more motion" not in report
    assert set(by_level(measure([model], state, factors)).values()) == {1.0}
    assert difference(sample(model), sample(load(nodes, shifted, file)[0])) > 1e-3


def test_an_experts_file_is_on_its_expert_in_all_steps_with_two_single_loaders(
    nodes, shifted, state, save, factors
):
    """The graph hands over at 0.8333, below the 0.875 at which Wan's own program does."""
    high, low = (load(nodes, shifted, save(f"walk_{end}_noise.safetensors", noise_range))[0]
                 for end, noise_range in (("high", HIGH), ("low", LOW)))  # fmt: skip
    assert set(by_level(measure([high, low], state, factors)).values()) == {1.0}
    strengths = by_level(measure([high, high], state, factors))
    assert list(strengths.values()) == [1.0] * CUT + [0.0] * CUT


@pytest.mark.parametrize("constant", ["auto", "on the fly"])
def test_the_pair_loader_finds_both_files_of_the_training_nodes(
    nodes, shifted, state, save, factors, constant
):
    chosen = save("walk_high_noise_400_0123abcd.safetensors", HIGH)
    other = save("walk_low_noise_600_89ef4567.safetensors", LOW)
    assert nodes["SMRASparseLoRAPairLoader"].validate_inputs(subject_lora="None", motion_lora=chosen) is True
    *models, report = load_pair(nodes, shifted, chosen, constant_lora=constant)
    assert chosen in report and other in report and report.count("at all noise levels of this model") == 2
    assert report.count("merged") == (2 if constant == "auto" else 0)
    assert set(by_level(measure(models, state, factors)).values()) == {1.0}


def test_a_file_of_one_expert_alone_is_not_applied_on_the_other(nodes, shifted, state, save, factors):
    *models, report = load_pair(nodes, shifted, save("walk.safetensors", HIGH))
    assert list(by_level(measure(models, state, factors)).values()) == [1.0] * CUT + [0.0] * CUT
    assert "not applied here" in report
    *models, report = load_pair(nodes, shifted, "walk.safetensors", noise_range="everywhere")
    assert set(by_level(measure(models, state, factors)).values()) == {1.0}


def test_a_trained_lora_carries_its_range_to_file_and_wire(nodes, graph):
    import folder_paths

    lora, _, _, file = train_subject(nodes, graph, noise_range="high-noise expert", steps=1, name="dog")
    assert file.startswith("dog_high_noise_1_")
    with safe_open(folder_paths.get_full_path("loras", file), "pt") as saved:
        about = saved.metadata()
    assert about["modelspec.timestep_range"] == "875,1000"
    result = nodes["SMRASparseLoRALoader"].execute(
        graph.model, subject_lora="None", motion_lora="None", subject_strength=1.0, motion_strength=1.0,
        subject_lora_model=lora,
    ).result  # fmt: skip
    assert f"trained at the noise range {HIGH}" in result[3]


def test_a_custom_range_is_in_the_forecast_and_bands_are_in_the_picture_alone(nodes, graph, monkeypatch):
    shown = []
    module = random_wan.pack("nodes.training.run")
    monkeypatch.setattr(module, "show_text", lambda _, text: shown.append(text))
    chosen = {"noise_range": "custom", "noise_low": 0.25, "noise_high": 0.5}
    _, loss_map, *_ = train_motion(nodes, graph, **chosen)
    assert "at the noise range 0.25 to 0.5" in shown[0]
    assert not [name for name in loss_map if "sigma" in name]
