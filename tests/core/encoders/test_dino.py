import pytest
import torch
from random_clip import DINO_WIDTH, SIDE, build_dino, to_timm_names

from smra_core.encoders.dino import crop_center, load_dino
from smra_core.storage.weight_file import read_weight_file, write_weight_file

PICTURES = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(2))


def test_timms_file_and_transformers_folder_give_the_class_token_of_the_same_net(tmp_path):
    net = build_dino()
    net.save_pretrained(tmp_path / "folder")
    saved = read_weight_file(tmp_path / "folder" / "model.safetensors").tensors
    weights = {name: value.contiguous() for name, value in to_timm_names(saved).items()}
    write_weight_file(tmp_path / "dino.safetensors", weights, {})
    from_file, from_folder = load_dino(tmp_path / "dino.safetensors"), load_dino(tmp_path / "folder")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    prepared = crop_center(PICTURES, SIDE, 256 / 224) - mean[:, None, None]
    with torch.no_grad():
        expected = net(pixel_values=prepared / std[:, None, None]).last_hidden_state[:, 0]
    assert expected.shape == (2, DINO_WIDTH)
    assert torch.allclose(from_folder.embed_pictures(PICTURES), expected, atol=1e-5)
    assert torch.allclose(from_file.embed_pictures(PICTURES), expected, atol=1e-4)
    assert from_file.name == from_folder.name == "DINO ViT-64/16"


def test_the_center_is_cropped_after_resizing_the_shorter_side():
    picture = torch.zeros(1, 3, 16, 32)
    picture[..., 8:24] = 1.0
    assert torch.allclose(crop_center(picture, 8)[..., 1:-1], torch.ones(1, 3, 8, 6), atol=1e-3)
    assert torch.equal(crop_center(picture, 16), picture[..., 8:24])


def test_another_file_and_another_folder_are_refused_by_name(tmp_path):
    write_weight_file(tmp_path / "other.safetensors", {"weight": torch.ones(2)}, {})
    with pytest.raises(ValueError, match="is not DINO: it lacks patch_embed"):
        load_dino(tmp_path / "other.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="says 'clip'"):
        load_dino(tmp_path)
