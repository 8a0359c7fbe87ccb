"""Training through the nodes on models that take images or videos, with ComfyUI's own conditioning nodes."""

import pytest
import random_variants
import torch
from random_variants import BY_NAME, CLIP_DIM
from random_wan import load_dit, pack
from safetensors.torch import load_file
from test_training_endings import OUT_OF_MEMORY, Canceled, run_folder, strike
from training_gradients import fingerprint
from training_graph import FRAMES, SIDE, train_motion, train_subject

SERVED = ("I2V 2.1", "I2V 2.2", "Fun inpaint", "Fun control", "VACE")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models by the variant's name, read from files, under inference mode as in a graph."""
    made = {}

    def load(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("variant")
            made[name] = load_dit(folder, random_variants.make_state(BY_NAME[name]))
        return made[name]

    return load


class Clip:
    """CLIP's features of an image, as CLIP Vision Encode gives them out."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.penultimate_hidden_states = torch.randn(1, 5, CLIP_DIM, generator=generator)


def conditioned(graph, name, length=FRAMES, first=None):
    """What the graph's prompt becomes in the variant's own node, with the clip's first frame."""
    from comfy_extras import nodes_wan

    size = dict(width=SIDE, height=SIDE, length=length, batch_size=1)
    first = graph.frames[:1] if first is None else first
    given = dict(positive=graph.positive, negative=graph.positive, vae=graph.vae, **size)
    with torch.inference_mode():
        if name == "VACE":
            video = dict(strength=0.8, control_video=graph.frames[:length])
            node, more = nodes_wan.WanVaceToVideo, video
        elif name == "Fun control":
            node = nodes_wan.WanFunControlToVideo
            more = dict(start_image=first, control_video=graph.frames[:length], clip_vision_output=Clip())
        elif name == "Fun inpaint":
            node, more = nodes_wan.WanFunInpaintToVideo, dict(start_image=first, clip_vision_output=Clip())
        else:
            clip = dict(clip_vision_output=Clip()) if name == "I2V 2.1" else {}
            node, more = nodes_wan.WanImageToVideo, dict(start_image=first, **clip)
        return node.execute(**given, **more).args[0]


def train(nodes, graph, models, kind, positive=None, **changes):
    small = dict(model=models(kind), steps=3, mora_weight=0.0)
    return train_motion(nodes, graph, positive=positive or conditioned(graph, kind), **(small | changes))


def same(first, second):
    assert first[1] == second[1] and all(torch.equal(first[0][name], second[0][name]) for name in second[0])


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("error", [Canceled(), OUT_OF_MEMORY], ids=["canceled", "out of memory"])
def test_a_run_that_is_broken_off_resumes_bit_for_bit(
    nodes, graph, models, monkeypatch, tmp_path, name, error
):
    before = fingerprint(models(name))
    with monkeypatch.context() as patch, pytest.raises((Canceled, RuntimeError)):
        strike(patch, "backward", error)
        train(nodes, graph, models, name, name="broken")
    assert fingerprint(models(name)) == before
    (run,) = (tmp_path / "smra" / "runs").glob("*-broken-*")
    assert int(load_file(run / "state.safetensors")["step"]) == 1
    resumed = train(nodes, graph, models, name, name="broken")
    same(resumed, train(nodes, graph, models, name, name="whole"))
    assert fingerprint(models(name)) == before


@pytest.mark.parametrize("error", [Canceled(), OUT_OF_MEMORY], ids=["canceled", "out of memory"])
def test_a_subject_that_is_broken_off_on_an_expert_resumes_bit_for_bit(
    nodes, graph, models, monkeypatch, tmp_path, error
):
    model, given = models("I2V 2.2"), dict(noise_range="low-noise expert", steps=3)
    before = fingerprint(model)
    with monkeypatch.context() as patch, pytest.raises((Canceled, RuntimeError)):
        strike(patch, "backward", error)
        train_subject(nodes, graph, model=model, name="broken", **given)
    assert fingerprint(model) == before and run_folder(tmp_path, "broken_low_noise").step == 1
    resumed, whole = (train_subject(nodes, graph, model=model, name=n, **given) for n in ("broken", "whole"))
    same(resumed, whole)
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", SERVED)
def test_another_image_is_another_run(nodes, graph, models, name, tmp_path):
    train(nodes, graph, models, name, steps=1)
    other = conditioned(graph, name, first=graph.frames[2:3])
    if name == "VACE":
        other = [[text, values | {"vace_strength": [0.5]}] for text, values in other]
    train(nodes, graph, models, name, steps=1, positive=other)
    train(nodes, graph, models, name, steps=1, positive=conditioned(graph, name))
    assert len(list((tmp_path / "smra" / "runs").iterdir())) == 2


@pytest.mark.parametrize("name", ["I2V 2.1", "VACE"])
def test_the_flow_loss_trains_too_and_previews_are_drawn(nodes, graph, models, monkeypatch, name):
    import comfy.utils

    pictures = []
    report = lambda self, value, total, preview=None: pictures.append(preview)  # noqa: E731
    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", report)
    lora, loss_map, *_ = train(nodes, graph, models, name, steps=1, mora_weight=1.0, preview_every=1)
    assert all(tensor.any() for tensor in lora.values()) and loss_map["mora"][0] > 0
    assert pictures[-1] is not None


def test_previews_are_of_the_first_clip_where_lengths_differ(nodes, graph, models, monkeypatch):
    monkeypatch.setattr(pack("nodes.training.progress"), "PREVIEW_STEPS", 2)
    preview, shapes = pack("nodes.training.progress").Preview, []
    draw = preview.draw
    monkeypatch.setattr(preview, "draw", lambda self: [shapes.append(self.shape), draw(self)][1])
    longer = torch.cat([graph.frames, graph.frames])[:9]
    positive = conditioned(graph, "I2V 2.2"), conditioned(graph, "I2V 2.2", 9)
    given = dict(frames=(graph.frames[:FRAMES], longer), positive=positive, frame_count=9)
    train(nodes, graph, models, "I2V 2.2", steps=1, preview_every=1, **given)
    assert shapes == [(16, 2, 8, 8)]


def shown_texts(monkeypatch):
    texts = []
    monkeypatch.setattr(pack("nodes.training.run"), "show_text", lambda node, text: texts.append(text))
    return texts


def test_the_report_names_what_the_model_takes_and_which_latents_are_given(nodes, graph, models, monkeypatch):
    texts = shown_texts(monkeypatch)
    train(nodes, graph, models, "I2V 2.1", steps=1)
    assert "the model takes c_concat 20x2x8x8, clip_fea 5x1280. Of 2 latents 1 are given" in texts[0]


def test_pictures_train_a_model_for_images_with_the_image_left_out(nodes, graph, models, monkeypatch):
    texts, kinds = shown_texts(monkeypatch), []
    for positive in (graph.positive, conditioned(graph, "I2V 2.2"), conditioned(graph, "I2V 2.2", 1)):
        lora, *_ = train_subject(nodes, graph, model=models("I2V 2.2"), positive=positive, steps=1)
        kinds.append(lora)
    assert all("image left out (zeros)" in text for text in texts) and len(texts) == 3
    first, *others = kinds  # one and the same run: the image is not part of what is learned from
    assert all(torch.equal(other[name], first[name]) for other in others for name in first)


def test_conditioning_of_another_length_is_refused_before_anything_is_encoded(
    nodes, graph, models, monkeypatch
):
    positive = conditioned(graph, "I2V 2.2", 9)
    monkeypatch.setattr(graph.vae, "encode", None)
    with pytest.raises(ValueError, match="made for 9 frames"):
        train(nodes, graph, models, "I2V 2.2", positive=positive)


def test_several_clips_need_an_image_each(nodes, graph, models):
    clips = graph.frames, graph.frames.flip(2)
    shared = conditioned(graph, "I2V 2.2")
    with pytest.raises(ValueError, match="one image or video for 2 clips"):
        train(nodes, graph, models, "I2V 2.2", frames=clips, positive=shared, steps=1)
    each = shared, conditioned(graph, "I2V 2.2", first=clips[1][:1])
    lora, *_ = train(nodes, graph, models, "I2V 2.2", frames=clips, positive=each, steps=1)
    assert all(tensor.any() for tensor in lora.values())
