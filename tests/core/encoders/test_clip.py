import numpy as np
import pytest
import torch
from random_clip import CHANNELS, write_clip

from smra_core.encoders.clip import Clip

HEIGHT, WIDTH = 40, 56


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_embeddings_are_those_of_transformers_own_forward_pass(folder):
    from transformers import CLIPModel, CLIPProcessor

    pictures = torch.randint(0, 256, (3, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))
    clip = Clip(folder)
    arrays = [np.asarray(picture.permute(1, 2, 0), dtype=np.uint8) for picture in pictures]
    inputs = CLIPProcessor.from_pretrained(folder)(text=["a dog"], images=arrays, return_tensors="pt")
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(folder).eval()(**inputs)
    ours = torch.nn.functional.normalize(clip.embed_pictures(pictures / 255), dim=-1)
    text = torch.nn.functional.normalize(clip.embed_text("a dog"), dim=-1)
    assert ours.shape == (3, CHANNELS) and torch.allclose(ours, expected.image_embeds, atol=1e-5)
    assert torch.allclose(text, expected.text_embeds[0], atol=1e-5)
    assert clip.logit_scale * ours[0] @ text == pytest.approx(
        expected.logits_per_image[0, 0].item(), abs=1e-4
    )


def test_a_prompt_beyond_the_tokens_of_clip_is_cut_off(folder):
    clip = Clip(folder)
    assert torch.allclose(clip.embed_text("a" * 30), clip.embed_text("a" * 60))


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path):
    write_clip(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="could not be read as CLIP.*download all"):
        Clip(tmp_path)
    with pytest.raises(ValueError, match="no config.json"):
        Clip(tmp_path / "elsewhere")
