"""SMRA Evaluate Video and SMRA Show Report, with a random CLIP of ComfyUI's own classes."""

import json

import pytest
import torch
from encoder_nets import sea_raft_file
from random_wan import pack

SIDE, CHANNELS, FRAMES = 64, 16, 3
VISION = {
    "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16,
    "hidden_act": "quick_gelu", "projection_dim": CHANNELS, "image_size": 32, "patch_size": 16,
    "num_channels": 3, "model_type": "clip_vision_model",
}  # fmt: skip


@pytest.fixture
def nodes():
    return pack("nodes").NODE_CLASS_MAPPINGS


@pytest.fixture
def vision(tmp_path):
    """ComfyUI's CLIP Vision with random weights."""
    from comfy.clip_vision import ClipVisionModel

    config = tmp_path / "vision.json"  # older versions take no dict
    config.write_text(json.dumps(VISION))
    model = ClipVisionModel(str(config))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.model.parameters():
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


class TextEncoder(torch.nn.Module):
    """CLIP-L as ComfyUI nests it, with nothing but its projection."""

    clip = "clip_l"

    def __init__(self, weight):
        super().__init__()
        self.clip_l = torch.nn.Module()
        self.clip_l.transformer = torch.nn.Module()
        self.clip_l.transformer.text_projection = torch.nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.clip_l.transformer.text_projection.weight.data.copy_(weight)


class Clip:
    """ComfyUI's CLIP that gives out one embedding, the one before the projection."""

    def __init__(self, weight):
        self.cond_stage_model = TextEncoder(weight)

    def tokenize(self, text):
        return text

    def encode_from_tokens(self, tokens, return_pooled):
        assert return_pooled == "unprojected"
        return None, torch.arange(1.0, CHANNELS + 1)[None]


def draw(count, seed=0):
    return torch.rand(count, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(seed))


def test_a_video_is_measured_with_the_hosts_clip_and_vision(nodes, vision, tmp_path):
    weight = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(2))
    frames, subject = draw(FRAMES), draw(2, seed=1)
    with torch.inference_mode():
        text, numbers, picture = (
            nodes["SMRAEvaluateVideo"]
            .execute(
                frames + 0.0, "a dog", subject + 0.0, frames + 0.0, vision, Clip(weight), None,
                sea_raft_file(tmp_path),
            )
            .args
        )  # fmt: skip
    content = json.loads(numbers)["video"]
    ours = torch.nn.functional.normalize(vision.encode_image(frames)["image_embeds"].double(), dim=-1)
    theirs = torch.nn.functional.normalize(vision.encode_image(subject)["image_embeds"].double(), dim=-1)
    prompt = torch.nn.functional.normalize(weight @ torch.arange(1.0, CHANNELS + 1), dim=0).double()
    assert content["metrics"]["CLIP-I"] == pytest.approx((ours @ theirs.T).mean().item(), abs=1e-4)
    assert content["metrics"]["CLIP-T"] == pytest.approx((ours @ prompt).mean().item(), abs=1e-4)
    assert content["metrics"]["Motion Amount"] == pytest.approx(1, abs=1e-3)
    assert "Left out: DINO-I, Subject Consistency (needs DINO or DINOv2)." in text
    assert picture.ndim == 4 and picture.shape[-1] == 3


@pytest.mark.parametrize(
    "weight",
    [torch.zeros(CHANNELS, CHANNELS), torch.eye(CHANNELS), torch.full((CHANNELS, CHANNELS), torch.nan)],
)
def test_a_clip_without_its_projection_leaves_clip_t_out(nodes, vision, weight):
    text, numbers, _ = (
        nodes["SMRAEvaluateVideo"].execute(draw(2), "a dog", clip_vision=vision, clip=Clip(weight)).args
    )
    assert "CLIP-T" not in json.loads(numbers)["video"]["metrics"] and "text_projection" in text


def test_dinov2_of_the_miniature_measures_likeness(nodes):
    paths = pack("smra_core.miniature.weight_paths")
    _, numbers, _ = (
        nodes["SMRAEvaluateVideo"].execute(draw(2), subject=draw(2), dinov2=paths.DINOV2_FILE).args
    )
    metrics = json.loads(numbers)["video"]["metrics"]
    assert set(metrics) == {"DINO-I (DINOv2)", "Subject Consistency (DINOv2)"}


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    (tmp_path / "output" / "grid").mkdir(parents=True)
    return tmp_path / "output"


def test_the_newest_report_is_shown_with_its_title_and_address(nodes, output):
    import os

    for name, time in (("old.html", 1000), ("grid/report & more.html", 2000)):
        (output / name).write_text("<html><head><title>Dogs &amp; cats</title></head></html>")
        os.utime(output / name, (time, time))
    result = nodes["SMRAShowReport"].execute("")
    address, path = result.args
    assert address == "/view?filename=report+%26+more.html&subfolder=grid&type=output"
    assert path == str(output / "grid" / "report & more.html")
    assert result.ui.as_dict()["text"][0].startswith("Dogs & cats\n")
    assert (
        nodes["SMRAShowReport"].execute("old.html").args[0].startswith("/view?filename=old.html&subfolder=&")
    )


def test_only_pages_of_the_output_folder_are_shown(nodes, output):
    (output.parent / "secret.html").write_text("x")
    (output / "weights.bin").write_text("x")
    for wrong in ("../secret.html", "weights.bin", "absent.html", str(output.parent / "secret.html")):
        with pytest.raises(ValueError, match="folder"):
            nodes["SMRAShowReport"].execute(wrong)
    with pytest.raises(ValueError, match="Make a report first"):
        nodes["SMRAShowReport"].execute("")
