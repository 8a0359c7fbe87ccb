"""Both training nodes, executed as the host executes them."""

import logging

import pytest
import torch
from random_wan import pack
from safetensors import safe_open
from training_graph import train_motion, train_subject


@pytest.fixture
def loads(monkeypatch):
    """Counts how often the DiT is loaded for training."""
    place, counted = pack("nodes.host.backend"), []
    original = place.training_denoiser

    def counting(*args, **kwargs):
        counted.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(place, "training_denoiser", counting)
    return counted


def test_a_subject_is_trained_saved_and_not_trained_again(nodes, graph, loads, tmp_path):
    import comfy.sd
    import folder_paths

    lora, loss_map, steps, file = train_subject(nodes, graph)
    assert steps == 3 and len(loss_map["loss"]) == len(loss_map["region"]) == len(loss_map["sura"]) == 3
    # Q, K and FFN.0 of two blocks, two factors each.
    assert len(lora) == 2 * (2 + 2 + 1) * 2 and all(tensor.any() for tensor in lora.values())
    assert file in folder_paths.get_filename_list("loras")
    with safe_open(folder_paths.get_full_path("loras", file), "pt") as saved:
        assert saved.metadata()["smrabooth.role"] == '"subject"' and len(saved.keys()) == len(lora)

    again = train_subject(nodes, graph)
    assert len(loads) == 1 and again[2:] == (steps, file)
    assert all(torch.equal(again[0][name], lora[name]) for name in lora)
    patched, _ = comfy.sd.load_lora_for_models(graph.model, None, again[0], 1.0, 0.0)
    assert len(patched.patches) == len(lora) // 2


def test_the_stock_loader_takes_every_module(nodes, graph, caplog):
    import nodes as host_nodes

    *_, file = train_subject(nodes, graph, steps=1)
    with caplog.at_level(logging.WARNING):
        (patched,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(graph.model, file, 1.0)
    assert len(patched.patches) == 10 and not [
        r for r in caplog.records if "NOT LOADED" in r.getMessage().upper()
    ]


def test_training_lowers_the_loss(nodes, graph):
    """The same noise every step would be needed for a strict fall; means over a few steps must do."""
    _, loss_map, *_ = train_subject(nodes, graph, steps=24, learning_rate=1e-2, sura_weight=0.5)
    totals, sura = torch.tensor(loss_map["loss"]), torch.tensor(loss_map["sura"])
    assert totals.isfinite().all() and sura[-6:].mean() < sura[:6].mean() - 0.1


def test_more_steps_go_on_with_the_finished_run(nodes, graph, loads):
    short = train_subject(nodes, graph, steps=2)
    longer = train_subject(nodes, graph, steps=4)
    assert longer[1]["loss"][:2] == short[1]["loss"] and len(longer[1]["loss"]) == 4 and len(loads) == 2


def test_a_motion_is_trained_with_the_clip_cut_to_4n_plus_1(nodes, graph, loads):
    lora, loss_map, steps, file = train_motion(nodes, graph)
    # V, O, FFN.0 and FFN.2 of two blocks, two factors each.
    assert steps == 2 and len(lora) == 2 * (2 + 2 + 2) * 2 and all(tensor.any() for tensor in lora.values())
    assert set(loss_map) == {"loss", "temporal", "mora"} and all(value > 0 for value in loss_map["mora"])
    assert train_motion(nodes, graph)[3] == file and len(loads) == 1


def test_several_clips_are_one_motion_and_one_clip_in_a_list_is_the_same_run(nodes, graph):
    alone = train_motion(nodes, graph, name="alone")[3]
    assert train_motion(nodes, graph, name="alone", frames=(graph.frames,))[3] == alone
    wide = graph.frames.repeat(1, 1, 2, 1)
    masks = graph.masks[:1], graph.masks[:1].repeat(1, 1, 2)
    given = dict(frames=(graph.frames, wide), exclude=masks, batch_size=2)
    file = train_motion(nodes, graph, name="two", **given)[3]
    assert train_motion(nodes, graph, name="two", **given)[3] == file
    assert train_motion(nodes, graph, name="two", **given | {"own_sizes": True})[3] != file
    with pytest.raises(ValueError, match="model is a list of 2, and this node takes one"):
        nodes["SMRATrainMotionLoRA"].execute(model=[graph.model] * 2, frames=[graph.frames])


def test_a_motion_is_trained_beside_copies_in_other_colors(nodes, graph, monkeypatch):
    told = []
    monkeypatch.setattr(pack("nodes.training.run"), "show_text", lambda node, text: told.append(text))
    given = dict(name="colored", color_copies=2, accumulate=3, steps=1)
    lora, loss_map, steps, file = train_motion(nodes, graph, **given)
    assert steps == 1 and lora and all(value > 0 for value in loss_map["mora"])
    assert "1 clip and 2 copies in other colors of up to 5 frames of 64x64" in told[0]
    assert train_motion(nodes, graph, **given | dict(color_copies=0))[3] != file


def test_copies_in_other_colors_of_a_model_that_is_given_images_are_refused():
    backend, condition = pack("nodes.host.backend").ComfyBackend, pack("smra_core.wan.condition").Condition
    made = backend.__new__(backend)
    made.conditions, clips = [condition()], [torch.zeros(5, 3, 64, 64)] * 3
    assert made.make_conditions(clips) == [condition()] * 3
    made.conditions = [condition({"c_concat": torch.zeros(20, 2, 8, 8)})]
    assert made.make_conditions(clips[:1]) is made.conditions
    with pytest.raises(ValueError, match="color_copies needs an image in the colors of each copy.*to 0"):
        made.make_conditions(clips)


def test_a_subject_is_trained_as_a_clip(nodes, graph):
    images = graph.frames[:5]
    masks = graph.masks[:1].repeat(5, 1, 1)
    lora, loss_map, steps, _ = train_subject(nodes, graph, images=images, masks=masks, as_clip=True, steps=1)
    assert steps == 1 and lora and set(loss_map) == {"loss", "region", "sura"}
    with pytest.raises(ValueError, match="show no subject"):
        train_subject(nodes, graph, images=images, masks=(), as_clip=True)


def test_a_subject_is_trained_on_several_clips_and_a_picture(nodes, graph, monkeypatch):
    told = []
    monkeypatch.setattr(pack("nodes.training.run"), "show_text", lambda node, text: told.append(text))
    clip, mask = graph.frames[:5], graph.masks[:1].repeat(5, 1, 1)
    given = dict(
        images=(clip, clip.flip(2), graph.images[:1]), masks=(mask, mask.flip(2), graph.masks[:1]),
        positive=(graph.positive,) * 3, captions=("a", "b", "c"), as_clip=True, batch_size=2,
    )  # fmt: skip
    lora, loss_map, steps, file = train_subject(nodes, graph, name="several", **given)
    assert steps == 3 and all(tensor.any() for tensor in lora.values())
    assert set(loss_map) == {"loss", "region", "sura"}
    assert "1 picture and 2 clips of up to 5 frames of 64x64" in told[0]
    assert train_subject(nodes, graph, name="several", **given)[3] == file
    train_subject(nodes, graph, name="parts", **given | dict(steps=1))
    resumed = train_subject(nodes, graph, name="parts", **given)
    assert resumed[1] == loss_map and all(torch.equal(resumed[0][name], lora[name]) for name in lora)
    less = given | dict(images=given["images"][:2], masks=given["masks"][:2], positive=graph.positive)
    assert train_subject(nodes, graph, name="several", **less)[3] != file
    with pytest.raises(ValueError, match="2 prompts for 3 pictures or clips"):
        train_subject(nodes, graph, **given | dict(positive=(graph.positive,) * 2))


def test_the_private_decoder_decodes_as_the_hosts_vae_does(graph):
    latents = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode(False), torch.no_grad():
        decoder = pack("nodes.host.vae").load_decoder(graph.vae, torch.device("cpu"))
        ours = torch.cat(list(decoder.stream(latents)), 2)
        theirs = graph.vae.first_stage_model.decode(graph.model.model.process_latent_out(latents))
    assert ours.shape == (1, 3, 9, 32, 32) and torch.allclose(ours, theirs, atol=1e-5)


def test_what_cannot_work_is_refused_with_a_remedy(nodes, graph):
    empty = torch.zeros_like(graph.masks)
    with pytest.raises(ValueError, match="first picture 1.*the sam input"):
        train_subject(nodes, graph, masks=empty)
    with pytest.raises(ValueError, match="2 pictures have no mask.*first picture 1.*the sam input"):
        train_subject(nodes, graph, masks=None)
    with pytest.raises(ValueError, match="Use 64x64"):
        train_subject(nodes, graph, width=70)
    with pytest.raises(ValueError, match="sura_weight"):
        train_subject(nodes, graph, dinov2=None)
    with pytest.raises(ValueError, match="3 prompts for 2 pictures"):
        train_subject(nodes, graph, positive=graph.positive * 3)
    with pytest.raises(ValueError, match="umt5"):
        train_subject(nodes, graph, positive=[[torch.zeros(1, 7, 768), {}]])
    with pytest.raises(ValueError, match="at least 5"):
        train_motion(nodes, graph, frames=graph.frames[:4])
    with pytest.raises(ValueError, match="WAN needs 4n"):
        train_motion(nodes, graph, frame_count=6)


def test_images_are_encoded_one_by_one(nodes, graph):
    place_of = pack("nodes.host.backend").ComfyBackend
    with torch.inference_mode(False):
        place = place_of(graph.model, graph.vae, {})
        pictures = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        each = place.encode_clips([picture[None] for picture in pictures])
        (clip,) = place.encode_clips([pictures[:5]])
    assert len(each) == 6 and each[0].shape == (16, 1, 4, 4) and clip.shape == (16, 2, 4, 4)


def test_an_identity_outlives_sampling_with_a_patched_clone(graph):
    """A LoRA patched in place must not make another run of the same MODEL."""
    import comfy.model_management as management

    identity = pack("nodes.host.model_identity").fingerprint_model
    before = identity(graph.model)
    clone = graph.model.clone()
    clone.add_patches({"diffusion_model.blocks.0.ffn.0.weight": ("diff", (torch.ones(128, 256),))})
    with torch.inference_mode():
        management.load_models_gpu([clone])
        assert identity(graph.model) == before != identity(clone)
    unnamed = graph.model.clone()
    unnamed.cached_patcher_init = None
    loaded = identity(unnamed)
    management.unload_all_models()
    assert identity(unnamed) == loaded


def test_previews_show_the_model_and_change_nothing_that_is_learned(nodes, graph, monkeypatch):
    import comfy.utils

    plain = train_subject(nodes, graph, steps=2, name="plain")
    pictures = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar,
        "update_absolute",
        lambda self, value, total, preview=None: pictures.append(preview),
    )
    shown = train_subject(nodes, graph, steps=2, name="shown", preview_every=2)
    masked, first, second = pictures  # before training: the pictures with their masks
    assert masked[1].size == (2 * 64, 2 * 64) and first is None and second[1].size == (512, 512)
    assert all(torch.equal(shown[0][name], plain[0][name]) for name in plain[0])
