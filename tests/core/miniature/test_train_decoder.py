from functools import partial

import pytest
import torch

from smra_core.miniature.recipe import train_decoder as stage
from smra_core.miniature.recipe.export import export_vae
from smra_core.miniature.recipe.stage import Stage
from smra_core.miniature.recipe.train_decoder import (
    average_error,
    load_trained_decoder,
    train_decoder,
    weigh_sprite,
)
from smra_core.miniature.recipe.train_vae import load_trained_vae
from smra_core.miniature.world.random_clips import draw_clip
from smra_core.storage.weight_file import read_weight_file

WEIGHT = "decoder.conv_in.weight"


@pytest.fixture
def small(monkeypatch):
    """Make clips of one frame and 16 x 16 pixels."""

    def draw_tiny(generator, count):
        return [draw_clip(generator).frames[:1, :, 24:40, 24:40] for _ in range(count)]

    monkeypatch.setattr(stage, "_draw_clips", draw_tiny)


def test_the_decoder_is_trained_and_the_encoder_is_held(tmp_path, small):
    before = load_trained_vae(tmp_path).state_dict()
    train_decoder(tmp_path, steps=1)
    after = load_trained_decoder(tmp_path).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    assert WEIGHT in changed
    file = export_vae(tmp_path, tmp_path / "weights")
    written = read_weight_file(file).tensors
    assert torch.equal(written["decoder.conv1.weight"], after[WEIGHT].half())


def test_an_interrupted_decoder_stage_ends_as_one_that_was_not(tmp_path, small, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_decoder(whole, steps=2)
    compute_loss = stage._compute_loss

    def stop(*args):
        monkeypatch.setattr(stage, "_compute_loss", stop_now)
        return compute_loss(*args)

    def stop_now(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "Stage", partial(Stage, save_every=1))
    monkeypatch.setattr(stage, "_compute_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        train_decoder(parts, steps=2)
    monkeypatch.setattr(stage, "_compute_loss", compute_loss)
    halfway = load_trained_decoder(parts).state_dict()[WEIGHT]
    train_decoder(parts, steps=2)
    ends = [load_trained_decoder(build).state_dict()[WEIGHT] for build in (whole, parts)]
    assert torch.equal(*ends) and not torch.equal(halfway, ends[0])


def test_the_sprite_weighs_more_and_the_mean_weight_is_one():
    painted = draw_clip(torch.Generator().manual_seed(0))
    weight = weigh_sprite(painted.frames)
    assert weight.mean().item() == pytest.approx(1)
    ratio = weight[painted.mask_px > 0].max() / weight.min()
    assert ratio.item() == pytest.approx(1 + stage.SPRITE_WEIGHT)


def test_the_error_counts_pixels_and_their_differences():
    difference = torch.zeros(1, 1, 1, 2, 2)
    difference[..., 0, 0] = 1.0
    # One pixel of four is off by 1; one of two differences is, along either axis.
    assert average_error(difference, torch.ones(1, 1, 1, 2, 2)).item() == pytest.approx(0.25 + 0.5 + 0.5)
