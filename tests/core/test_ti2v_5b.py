"""TI2V-5B by the command line, from files to files: latents of 48 channels, tokens of 32 pixels, 24 fps."""

from types import SimpleNamespace

import pytest
import torch
from random_models import Sizes
from safetensors.torch import load_file
from test_cli import World, run

from smra_core import cli
from smra_core.commands.data_options import select_frames
from smra_core.data.video import Selection, read_video
from smra_core.lora.reader import load_lora
from smra_core.training.run_folder import read_losses
from smra_core.wan.spec import LATENTS_22, WAN_1_3B, WAN_5B

BLOCKS = 2
SIZE = ("--width", 64, "--height", 64)
"""Four tokens: attention among a single one has no gradient."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("5b"), Sizes(latents=LATENTS_22, blocks=BLOCKS))


@pytest.fixture(scope="module")
def loras(world):
    """The subject and the motion LoRA, each trained in one go."""
    return world.train_subject("whole", "native", *SIZE), world.train_motion("whole", "native", *SIZE)


def test_both_layouts_train_to_the_same_loras(world, loras):
    subject, motion = loras
    assert len(load_lora(subject).lora) == 5 * BLOCKS and len(load_lora(motion).lora) == 6 * BLOCKS
    others = [train("other", "diffusers", *SIZE) for train in (world.train_subject, world.train_motion)]
    for native, other in zip(loras, others, strict=True):
        first, second = load_file(native), load_file(other)
        assert first.keys() == second.keys()
        for name in first:
            torch.testing.assert_close(first[name], second[name])


def test_a_run_in_two_parts_ends_as_the_one_in_a_go(world, loras):
    for train, whole in zip((world.train_subject, world.train_motion), loras, strict=True):
        train("parts", "native", *SIZE, "--steps", 1)
        continued, once = load_file(train("parts", "native", *SIZE)), load_file(whole)
        assert all(torch.equal(continued[name], once[name]) for name in once)


@pytest.mark.parametrize("decode", ["exact", "exact-low-memory", "windowed"])
def test_every_way_to_decode_trains(world, decode):
    lora = world.train_motion("decode", "native", *SIZE, "--decode", decode, "--window", 1, "--context", 1)
    losses = read_losses(lora.parent / "losses.csv")
    assert len(losses["mora"]) == 2 and all(value > 0 for value in losses["mora"])


def test_a_video_is_sampled_with_both_loras(world, loras):
    subject, motion = loras
    base = world.sample("base.mp4")
    assert base != world.sample("both.mp4", "--subject", subject, "--motion", motion)
    assert read_video(world.folder / "both.mp4", (32, 32), 5).fps == 24
    world.sample("slow.mp4", "--fps", 15)
    assert read_video(world.folder / "slow.mp4", (32, 32), 5).fps == 15


@pytest.mark.parametrize("spec, rate", [(WAN_5B, 24), (WAN_1_3B, 16)])
def test_clips_are_read_at_the_rate_of_the_models_videos(spec, rate):
    def select(*options):
        args = cli.build_parser().parse_args(["train-motion", "x", *options])
        return select_frames(args, SimpleNamespace(spec=spec), 49)

    assert select() == Selection(49, 0, 1, rate, rate)
    assert select("--frame-rate", "10") == Selection(49, 0, 1, 10, rate)
    assert select("--frame-rate", "keep") == Selection(49, 0, 1, None, rate)


def test_a_size_off_the_grid_of_32_pixels_is_refused_before_anything_is_loaded(world, capsys):
    for command, data in (("train-subject", world.dog), ("train-motion", world.walk), ("sample", "a dog")):
        assert cli.main([command, str(data), *world.wan["native"], "--width", "48", "--height", "32"]) == 1
        assert "Size 48x32 is not a multiple of 32. Use 64x32." in capsys.readouterr().err


def test_inspect_names_the_model(loras):
    assert "Wan2.2-TI2V of 2 blocks, width 128" in run("inspect", loras[0])
