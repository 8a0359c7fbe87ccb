"""Wan 2.2's experts, trained one after the other: the device holds one of them at a time."""

import pytest
from random_wan import TRAINED_FFN, dit_state, load_dit
from training_graph import train_motion, train_subject


@pytest.fixture
def loaded(monkeypatch):
    """The DiTs on the device after each loading, in order."""
    import comfy.model_management as management

    load, seen = management.load_models_gpu, []

    def load_and_look(*args, **kwargs):
        load(*args, **kwargs)
        patchers = [each.model for each in management.current_loaded_models if each.model is not None]
        nets = [getattr(patcher.model, "diffusion_model", None) for patcher in patchers]
        seen.append([net for net in nets if net is not None])

    management.unload_all_models()
    monkeypatch.setattr(management, "load_models_gpu", load_and_look)
    return seen


def test_one_expert_is_unloaded_before_the_other_is_loaded(nodes, graph, loaded, tmp_path):
    low = load_dit(tmp_path, dit_state(ffn=TRAINED_FFN, seed=1))
    train_motion(nodes, graph, noise_range="high-noise expert")
    train_subject(nodes, graph, model=low, noise_range="low-noise expert")
    both = [graph.model.model.diffusion_model, low.model.diffusion_model]
    steps = [nets for nets in loaded if nets]
    assert all(len(nets) == 1 for nets in steps)
    assert [nets[0] for nets in (steps[0], steps[-1])] == both
