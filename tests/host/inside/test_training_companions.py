"""What stands around the training nodes: choosing files, masks, flow pictures, data, inspection."""

import asyncio

import pytest
import torch
from encoder_nets import sea_raft_file
from PIL import Image
from random_wan import pack
from safetensors.torch import save_file

FOLDERS = ("dinov2", "clip_vision", "optical_flow", "sea_raft", "loras")


@pytest.fixture
def nodes():
    return pack("nodes").NODE_CLASS_MAPPINGS


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The host's folders, in a place of the test's own."""
    import folder_paths

    known = {name: ([str(tmp_path / "models" / name)], set()) for name in FOLDERS}
    for paths, _ in known.values():
        (tmp_path / paths[0]).mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folder_paths.folder_names_and_paths | known)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    return tmp_path


def test_a_loader_offers_our_folder_and_the_hosts_and_refuses_others(folders):
    kind = pack("nodes.host.model_folders").DINOV2
    for file in ("dinov2/dinov2_vitb14.pth", "clip_vision/my_dinov2.safetensors", "clip_vision/clip_h.pth"):
        (folders / "models" / file).write_bytes(b"")
    choices = [choice for choice in kind.list_choices() if "miniature" not in choice]
    assert choices == ["dinov2/dinov2_vitb14.pth", "clip_vision/my_dinov2.safetensors"]
    assert kind.find(choices[1]) == folders / "models" / "clip_vision" / "my_dinov2.safetensors"
    for wrong in ("loras/x.pth", "dinov2/absent.pth", "dinov2/../loras/x.pth", "nothing"):
        with pytest.raises(ValueError, match="Download dinov2_vitg14_pretrain.pth"):
            kind.find(wrong)


def test_files_under_the_hubs_names_are_offered(folders):
    module = pack("nodes.host.model_folders")
    patch, scale = "embeddings.patch_embeddings.projection.weight", "encoder.layer.0.layer_scale1.lambda1"
    dino = {patch: torch.zeros(8, 3, 14, 14), scale: torch.zeros(8)}
    clip = {"vision_model.embeddings.patch_embedding.weight": torch.zeros(8, 3, 14, 14)}
    for file, tensors in (
        ("dinov2/model.safetensors", dino), ("dinov2/giant/model.SAFETENSORS", dino),
        ("optical_flow/model.safetensors", clip), ("sea_raft/model.pth", clip),
        ("clip_vision/model.safetensors", dino), ("clip_vision/clip_h.safetensors", clip),
    ):  # fmt: skip
        path = folders / "models" / file
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, path)
    (folders / "models" / "clip_vision" / "broken.safetensors").write_bytes(b"no header")
    offered = {kind.name: [choice for choice in kind.list_choices() if "miniature" not in choice]
               for kind in (module.DINOV2, module.SEA_RAFT)}  # fmt: skip
    assert sorted(offered["DINOv2"]) == [
        "clip_vision/model.safetensors", "dinov2/giant/model.SAFETENSORS", "dinov2/model.safetensors",
    ]  # fmt: skip
    assert offered["SEA-RAFT"] == ["optical_flow/model.safetensors", "sea_raft/model.pth"]


def test_a_workflow_finds_a_file_in_another_folder_of_its_kind(folders, nodes):
    load = nodes["SMRALoadDINOv2"]
    for there, asked in (("clip_vision/a.pth", "dinov2/a.pth"), ("dinov2/b.pth", "clip_vision/b.pth")):
        (folders / "models" / there).write_bytes(b"")
        assert load.validate_inputs(file=asked) is True
        assert load.execute(asked).args[0] == folders / "models" / there
    assert "Download dinov2_vitg14_pretrain.pth" in load.validate_inputs(file="dinov2/absent.pth")
    assert load.validate_inputs(file=None) is True  # linked from another node


def test_the_host_lets_a_file_pass_that_its_list_of_choices_lacks(folders, nodes, monkeypatch):
    import execution

    import nodes as host_nodes

    monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, "SMRALoadDINOv2", nodes["SMRALoadDINOv2"])
    (folders / "models" / "clip_vision" / "a.pth").write_bytes(b"")
    for file, passes in (("dinov2/a.pth", True), ("dinov2/b.pth", False)):
        prompt = {"1": {"class_type": "SMRALoadDINOv2", "inputs": {"file": file}}}
        valid, errors, _ = asyncio.run(execution.validate_inputs("prompt", prompt, "1", {}))
        assert valid is passes
        assert passes or "Download dinov2_vitg14_pretrain.pth" in errors[0]["details"]


def test_an_empty_folder_still_gives_the_browser_a_choice(folders, nodes):
    kind = pack("nodes.host.model_folders").SAM
    choices = kind.list_choices()
    assert choices
    if choices == [pack("nodes.host.model_folders").NOTHING]:
        with pytest.raises(ValueError, match="models/sams"):
            nodes["SMRALoadSAM"].execute(choices[0])


def test_flow_pictures_show_direction_and_speed(folders, nodes, tmp_path):
    frames = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        pictures, speed = nodes["SMRAPreviewOpticalFlow"].execute(frames + 0.0, sea_raft_file(tmp_path)).args
    assert pictures.shape == (2, 64, 64, 3) and 0 <= pictures.min() and pictures.max() <= 1 and speed >= 0
    with pytest.raises(ValueError, match="needs two frames"):
        nodes["SMRAPreviewOpticalFlow"].execute(frames[:1], tmp_path / "flow.safetensors")


def test_colors_share_one_scale():
    flow = torch.zeros(2, 2, 40, 40)
    flow[0, 0], flow[1, 0] = 4.0, 1.0  # right, fast and slow
    fast, slow = pack("nodes.preview_flow").color_clip(flow)
    assert torch.allclose(fast[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]), atol=1 / 255)
    assert torch.allclose(slow[:, 0, 0], torch.tensor([1.0, 0.75, 0.75]), atol=1 / 255)


def test_masks_come_with_a_picture_to_check_them_by(folders, nodes, monkeypatch):
    module, points = pack("nodes.segment_subject"), []

    def find_subject_mask(net, picture, point):
        points.append(point)
        mask = torch.zeros(1, *picture.shape[-2:])
        mask[:, :4] = 1
        return mask

    class Net:
        def to(self, device):
            return self

    monkeypatch.setattr(module, "load_sam", lambda path: Net())
    monkeypatch.setattr(module, "find_subject_mask", find_subject_mask)
    images = torch.ones(2, 8, 16, 3)
    masks, preview = nodes["SMRASegmentSubject"].execute(images, None, 0.25, 1.0).args
    assert masks.shape == (2, 8, 16) and points == [(4.0, 7)] * 2
    assert preview[0, 0, 0].tolist() == [1.0] * 3 and preview[0, 7, 0].tolist() == [0.25] * 3


class Clip:
    """Encodes a caption as its length."""

    def tokenize(self, text):
        return len(text)

    def encode_from_tokens_scheduled(self, tokens):
        return [[torch.full((1, 3, 4096), float(tokens)), {}]]


def test_a_subject_folder_becomes_pictures_masks_and_prompts(folders, nodes):
    folder = folders / "input" / "dog"
    (folder / "masks").mkdir(parents=True)
    for name, caption in (("a", "a dog"), ("b", "a sks dog")):
        Image.new("RGB", (96, 64), "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)
    Image.new("L", (96, 64), 255).save(folder / "masks" / "a.png")
    node = nodes["SMRALoadSubjectFolder"]
    images, masks, positive, captions = node.execute(Clip(), "dog", "", 64, 64).args
    assert images.shape == (2, 64, 64, 3) and masks.mean((1, 2)).tolist() == [1.0, 0.0]
    assert [entry[0][0, 0, 0].item() for entry in positive] == [5.0, 9.0] and captions == "a dog\na sks dog"
    before = node.fingerprint_inputs(folder="dog")
    (folder / "a.txt").write_text("another dog")
    assert node.fingerprint_inputs(folder="dog") != before
    with pytest.raises(ValueError, match="Use 64x64"):
        node.execute(Clip(), "dog", "", 70, 64)


def test_prompts_stay_as_a_sampler_takes_them():
    prompt = torch.ones(1, 12, 4096)
    _, contexts = pack("nodes.host.conditioning").match_captions([[prompt, {}]], 2, "a ball")
    assert torch.equal(contexts["a ball"], prompt[0])


def test_prompts_are_padded_and_matched_to_pictures():
    match_captions = pack("nodes.host.conditioning").match_captions
    prompts = [[torch.ones(1, 3, 4096), {}], [torch.full((1, 600, 4096), 2.0), {}]]
    names, contexts = match_captions(prompts, 2, "first\nsecond")
    assert names == ["first", "second"] and contexts["first"].shape == (600, 4096)
    assert contexts["first"][:3].eq(1).all() and contexts["first"][3:].eq(0).all()
    assert contexts["second"].shape == (600, 4096)
    assert match_captions(prompts[:1], 3)[0] == ["prompt 1"] * 3
    names, contexts = match_captions(prompts, 2, "same")
    assert len(set(names)) == 2 and len(contexts) == 2


def test_masks_that_the_crop_cuts_are_noted():
    crop_masks = pack("nodes.host.images").crop_masks
    images, masks = torch.zeros(1, 64, 128, 3), torch.zeros(1, 64, 128)
    masks[0, :, 16:48] = 1  # a central crop to a square keeps columns 32 to 95
    (kept,), notes = crop_masks(masks, images, (64, 64))
    assert kept.sum() == 16 * 64
    assert notes == [
        "picture 1: its mask covers 25 % of the picture and touches the top and bottom edges",
        "the crop cuts off 50 % of the subject in picture 1",
    ]
    masks[0, :, 32:48] = 0
    with pytest.raises(ValueError, match="no subject left after cropping"):
        crop_masks(masks, images, (64, 64))
    with pytest.raises(ValueError, match="1 masks of 128x64 for 2 pictures of 128x64"):
        crop_masks(masks, images.repeat(2, 1, 1, 1), (64, 64))


def test_loss_curves_have_a_panel_each():
    columns = {"step": [1.0, 2.0, 3.0], "total": [3.0] * 3, "region": [3.0, 2.0, 1.0], "sura": [0.5] * 3}
    picture = pack("nodes.training.loss_picture").draw_loss_image(columns)
    assert picture.shape == (1, 240, 840, 3) and picture.min() < 0.5


def test_inspection_tells_whether_file_and_model_fit(folders, nodes):
    names = {f"diffusion_model.blocks.0.ffn.0.lora_{half}.weight": shape for half, shape in
             (("A", (2, 8)), ("B", (4, 2)))}  # fmt: skip
    save_file(
        {name: torch.ones(shape) for name, shape in names.items()}, folders / "models/loras/x.safetensors"
    )
    (text,) = nodes["SMRAInspectLoRA"].execute("x.safetensors").args
    assert "ffn.0" in text and "comfyui" in text


def test_a_duration_is_spoken_in_few_words():
    format_duration = pack("nodes.training.progress").format_duration
    assert [format_duration(t) for t in (7.4, 61, 3540, 3700, 7300)] == [
        "7 s",
        "1 min",
        "59 min",
        "1 h 2 min",
        "2 h 2 min",
    ]
