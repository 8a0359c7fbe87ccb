"""However a run through the nodes ends, no finished step is lost and the user's MODEL is as before."""

from types import SimpleNamespace

import pytest
import torch
from random_wan import DIM, pack
from safetensors.torch import load_file
from training_gradients import fingerprint, sampled
from training_graph import train_motion, train_subject

PATCHED = "diffusion_model.blocks.0.self_attn.q.weight"


class Canceled(BaseException):
    """As the host's own, not an Exception."""


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
ENDINGS = {
    "canceled between steps": ("between", Canceled(), Canceled),
    "canceled in forward": ("forward", Canceled(), Canceled),
    "canceled in backward": ("backward", Canceled(), Canceled),
    "out of memory in forward": ("forward", OUT_OF_MEMORY, RuntimeError),
    "out of memory in backward": ("backward", OUT_OF_MEMORY, RuntimeError),
}


@pytest.fixture
def model(graph):
    """The user's MODEL, with a LoRA of the user's on it; nothing of it is loaded."""
    import comfy.model_management as management

    patched = graph.model.clone()
    patched.add_patches({PATCHED: ("diff", (torch.full((DIM, DIM), 0.01),))})
    management.unload_all_models()
    return patched


@pytest.fixture
def whole(nodes, graph, model):
    """What a run gives that nothing disturbs."""
    return lambda train: train(nodes, graph, model=model, steps=3, name="whole")


def strike(monkeypatch, place, error):
    """Raise in the second step: in the model, on the way back, or when the step is reported."""
    import comfy.utils

    denoiser, frozen = (
        pack("nodes.host.denoiser").HostDenoiser,
        pack("smra_core.lora.frozen_linear").FrozenLinear,
    )
    velocity, backward, report = denoiser.velocity, frozen.backward, comfy.utils.ProgressBar.update_absolute
    begun = []

    def struck(original, where):
        def method(*args, **kwargs):
            # Before the training, a step is taken on a copy without values (see nodes.host.trial_step).
            if where == "forward" and not args[1].is_meta:
                begun.append(1)
            if where == place and len(begun) == 2:
                raise error
            return original(*args, **kwargs)

        return method

    monkeypatch.setattr(denoiser, "velocity", struck(velocity, "forward"))
    monkeypatch.setattr(frozen, "backward", staticmethod(struck(backward, "backward")))
    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", struck(report, "between"))


def run_folder(tmp_path, name):
    (run,) = (tmp_path / "smra" / "runs").glob(f"*-{name}-*")
    return SimpleNamespace(
        step=int(load_file(run / "state.safetensors")["step"]), finished=(run / "finished").exists()
    )


def same(first, second):
    assert first[1] == second[1] and all(torch.equal(first[0][name], second[0][name]) for name in second[0])


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_subject_run_that_is_broken_off_resumes_bit_for_bit(
    nodes, graph, model, whole, monkeypatch, tmp_path, ending
):
    import comfy.model_management as management

    place, error, seen = ENDINGS[ending]
    before, picture = fingerprint(model), sampled(model)
    with monkeypatch.context() as patch, pytest.raises(seen) as raised:
        strike(patch, place, error)
        train_subject(nodes, graph, model=model, steps=3, name="broken")
    if error is OUT_OF_MEMORY:
        assert "all finished steps are kept. Lower batch_size" in str(raised.value)
    assert not getattr(management, "in_training", False)
    assert fingerprint(model) == before and torch.equal(sampled(model), picture)
    kept = run_folder(tmp_path, "broken")
    assert kept.step == (2 if place == "between" else 1) and not kept.finished
    same(train_subject(nodes, graph, model=model, steps=3, name="broken"), whole(train_subject))


@pytest.mark.parametrize(
    "ending", ["canceled between steps", "canceled in backward", "out of memory in backward"]
)
def test_a_motion_run_that_is_broken_off_resumes_bit_for_bit(
    nodes, graph, model, whole, monkeypatch, tmp_path, ending
):
    place, error, seen = ENDINGS[ending]
    before = fingerprint(model)
    with monkeypatch.context() as patch, pytest.raises(seen):
        strike(patch, place, error)
        train_motion(nodes, graph, model=model, steps=3, name="broken")
    kept = run_folder(tmp_path, "broken")
    assert kept.step == (2 if place == "between" else 1) and not kept.finished
    assert fingerprint(model) == before
    same(train_motion(nodes, graph, model=model, steps=3, name="broken"), whole(train_motion))


def test_a_motion_that_runs_out_of_memory_is_told_what_to_lower(nodes, graph, model, monkeypatch):
    strike(monkeypatch, "backward", OUT_OF_MEMORY)
    with pytest.raises(RuntimeError, match="Choose decode 'exact-low-memory'.* lower frame_count") as raised:
        train_motion(nodes, graph, model=model)
    assert not isinstance(raised.value, torch.OutOfMemoryError)


def test_a_host_that_unloads_everything_after_each_step_changes_nothing(
    nodes, graph, model, whole, monkeypatch
):
    import comfy.model_management as management
    import comfy.utils

    expected, before, unloaded = whole(train_subject), fingerprint(model), []

    def unload(self, *args):
        management.unload_all_models()
        unloaded.append(args[0])

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", unload)
    same(train_subject(nodes, graph, model=model, steps=3, name="unloaded"), expected)
    assert unloaded == [0, 1, 2, 3] and fingerprint(model) == before
