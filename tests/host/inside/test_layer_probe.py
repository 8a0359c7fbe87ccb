"""The SMRA Layer Probe node on a random WAN, against ComfyUI's own way to apply a LoRA."""

import pytest
import torch
from random_wan import SUBJECT_LAYERS, leftovers, lora_tensors, pack, save_lora
from training_graph import defaults

LATENT, SEED, LORA = (1, 16, 2, 8, 8), 3, 1


@pytest.fixture
def positive():
    with torch.inference_mode():
        return [[torch.randn(1, 7, 4096, generator=torch.Generator().manual_seed(5)), {}]]


@pytest.fixture
def probe(nodes, model, positive, tmp_path, monkeypatch):
    """Function that runs the node on a subject LoRA, with changed inputs."""
    import folder_paths

    save_lora(tmp_path / "probed.safetensors", SUBJECT_LAYERS, LORA)
    loras = {"loras": ([str(tmp_path)], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folder_paths.folder_names_and_paths | loras)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    node = nodes["SMRALayerProbe"]

    def run(**changes):
        given = dict(model=model, positive=positive, file="probed.safetensors", steps=1, probe_seed=SEED)
        given["latent"] = {"samples": torch.zeros(LATENT)}
        with torch.inference_mode():
            return node.execute(**(defaults(node) | given | changes)).args

    return run


def read_shares(report):
    """The shares (alone, lost) of each group in the table of a report."""
    rows = [line.rsplit(maxsplit=2) for line in report.splitlines()[1:] if line.endswith("%")]
    return {name: (float(alone[:-1]) / 100, float(lost[:-1]) / 100) for name, alone, lost in rows}


def denoise_merged(model, positive, layers):
    """What the model makes of the node's noise with these layers of the LoRA merged by ComfyUI."""
    import comfy.lora
    import comfy.model_management as management

    clone, named = model.clone(), {}
    for name, (a, b) in lora_tensors(SUBJECT_LAYERS, LORA).items():
        if name.endswith(tuple(f".{layer}" for layer in layers)):
            named[f"diffusion_model.{name}.lora_A.weight"] = a
            named[f"diffusion_model.{name}.lora_B.weight"] = b
    patches = comfy.lora.load_lora(named, comfy.lora.model_lora_keys_unet(clone.model, {}))
    clone.add_patches(patches, 1.0)
    noise = torch.randn(LATENT, generator=torch.Generator().manual_seed(SEED))
    with torch.inference_mode():
        management.load_models_gpu([clone])
        made = clone.model.apply_model(noise, torch.ones(1), c_crossattn=positive[0][0])
        management.unload_all_models()
    return made.double()


def test_the_shares_are_those_of_loras_that_comfyui_merges(probe, model, positive):
    plan, picture, report = probe()
    shares = read_shares(report)
    assert list(shares) == ["q", "k", "ffn.0", "block 0", "block 1"]
    base = denoise_merged(model, positive, ())
    whole = denoise_merged(model, positive, SUBJECT_LAYERS) - base
    for role in SUBJECT_LAYERS:
        rest = [other for other in SUBJECT_LAYERS if other != role]
        alone = ((denoise_merged(model, positive, (role,)) - base) * whole).sum() / whole.square().sum()
        kept = ((denoise_merged(model, positive, rest) - base) * whole).sum() / whole.square().sum()
        assert shares[role] == pytest.approx((alone.item(), 1 - kept.item()), abs=0.012), role
    assert picture.shape[0] == 1 and picture.min() < 0.5


def test_the_plan_is_one_that_the_loader_and_the_trainings_take_and_the_model_stays_as_it_was(
    probe, model, nodes
):
    plan, _, report = probe(keep=0.5)
    chosen = pack("nodes.patching.chosen_lora").choose_plan("subject", "custom", plan)
    assert f"plan: {plan}" in report and str(chosen) == plan
    options = nodes["SMRATrainingOptions"]
    (training,) = options.execute(**(defaults(options) | {"layers": "custom", "custom_layers": plan})).args
    assert training.plans == (chosen, chosen)
    assert leftovers(model) == [] and not model.patches


def test_latents_of_another_model_are_refused(probe):
    with pytest.raises(ValueError, match="needs 16 channels"):
        probe(latent={"samples": torch.zeros(1, 4, 8, 8)})
