import pytest
import torch

from smra_core.encoders.sea_raft import load_sea_raft
from smra_core.miniature.recipe import train_flow as stage
from smra_core.miniature.recipe.export import export_flow
from smra_core.miniature.recipe.train_flow import (
    collect_pairs,
    draw_pairs,
    load_trained_flow,
    rotate_colors,
    train_flow,
)
from smra_core.miniature.world.random_clips import draw_clip
from smra_core.storage.weight_file import read_weight_file


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(stage, "POOL", 3)
    monkeypatch.setattr(stage, "BATCH", 2)


def steps_kept(build):
    return torch.load(build / "flow.pt", weights_only=True)["step"]


def test_the_flow_stage_goes_on_where_it_stopped_and_its_net_is_written_to_a_new_folder(tmp_path, small):
    build = tmp_path / "build"
    train_flow(build, steps=1)
    first = load_trained_flow(build).state_dict()
    train_flow(build, steps=1)  # done already
    assert all(
        torch.equal(value, first[name]) for name, value in load_trained_flow(build).state_dict().items()
    )
    train_flow(build, steps=2)
    assert steps_kept(build) == 2
    weight = "fnet.conv1.weight"
    assert not torch.equal(load_trained_flow(build).state_dict()[weight], first[weight])
    path = export_flow(build, tmp_path / "weights" / "new")
    written = read_weight_file(path).tensors
    assert torch.equal(written[weight], load_trained_flow(build).state_dict()[weight].half())
    assert not load_sea_raft(path).training


def test_the_flow_stage_depends_on_its_seed_alone(tmp_path, small):
    nets = []
    for number, seed in enumerate((0, 0, 1)):
        train_flow(tmp_path / str(number), seed, steps=1)
        nets.append(load_trained_flow(tmp_path / str(number)).state_dict()["fnet.conv1.weight"])
    assert torch.equal(nets[0], nets[1]) and not torch.equal(nets[0], nets[2])


def test_rotated_colors_keep_every_contrast_and_the_flow():
    generator = torch.Generator().manual_seed(0)
    pairs = draw_pairs([draw_clip(generator) for _ in range(3)], generator)
    turned = rotate_colors(pairs, generator)

    def contrasts(frames):  # lengths of the steps in color from each pixel to the one on its right
        return frames.diff(dim=-1).norm(dim=1)

    assert not torch.allclose(turned.first, pairs.first)
    torch.testing.assert_close(contrasts(turned.first), contrasts(pairs.first), atol=1e-3, rtol=1e-4)
    steps, turned_steps = pairs.second - pairs.first, turned.second - turned.first
    torch.testing.assert_close(turned_steps.norm(dim=1), steps.norm(dim=1), atol=1e-3, rtol=1e-4)
    assert torch.equal(turned.flow, pairs.flow)


def test_collect_pairs_a_clip_are_its_neighbors():
    clip = draw_clip(torch.Generator().manual_seed(1))
    pairs = collect_pairs([clip])
    assert torch.equal(pairs.second[:-1], pairs.first[1:]) and torch.equal(pairs.flow, clip.flow)
