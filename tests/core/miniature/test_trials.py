"""Ideas that the bench tries: joint training, clips in other colors, trusted pixels, roles by videos."""

from dataclasses import replace

import pytest
import torch

from smra_core.data.motion_clip import MotionClip
from smra_core.lora.adapter import init_lora
from smra_core.lora.schedule import Strengths
from smra_core.miniature.__main__ import IDEAS, main
from smra_core.miniature.bench import color_jitter, flow_confidence, role_videos
from smra_core.miniature.bench.arm_run import ArmRun
from smra_core.miniature.bench.arms import AVERAGED
from smra_core.miniature.bench.color_jitter import make_colored_copies, render_pairs
from smra_core.miniature.bench.flow_confidence import check_consistency
from smra_core.miniature.bench.joint_training import JointSide, order_steps, train_jointly
from smra_core.miniature.bench.motion_arms import StackedMotion
from smra_core.miniature.bench.role_videos import correlate_ranks, rank_values, render_roles
from smra_core.miniature.model_files import MINIATURE_FILES
from smra_core.miniature.small_settings import MOTION, MOTION_TRAINING
from smra_core.training.mora import MotionObjective, MotionSample
from smra_core.training.state import TrainState
from smra_core.training.trainer import train_lora

SETTINGS = replace(MOTION, mora_weight=0.0, rank=2)
TRAINING = replace(MOTION_TRAINING, steps=2)
OFF, ON = Strengths.from_value(0.0), Strengths.from_value(1.0)


@pytest.fixture(scope="module")
def denoiser():
    return MINIATURE_FILES.load_denoiser(torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def sample():
    torch.manual_seed(0)
    return MotionSample("clip", torch.randn(16, 2, 4, 4), torch.randn(3, 4096), torch.zeros(4, 2, 0, 0))


def make_side(denoiser, sample, seed=0, steps=2, strengths=OFF, changed=False):
    lora = init_lora(denoiser.spec, SETTINGS.plan, SETTINGS.rank, torch.Generator().manual_seed(seed))
    if changed:
        for pair in lora.values():
            torch.nn.init.normal_(pair.b, std=0.1)
    training = replace(TRAINING, steps=steps, seed=seed)
    state = TrainState(lora, {}, training.learning_rate, training.weight_decay)
    return JointSide(state, MotionObjective(SETTINGS, None, None), [sample], training, strengths)


def flatten(side):
    return torch.cat([parameter.detach().flatten() for parameter in side.state.parameters.values()])


def test_a_side_beside_a_lora_that_is_off_trains_as_it_trains_alone(denoiser, sample):
    side, other = make_side(denoiser, sample), make_side(denoiser, sample, seed=1)
    train_jointly(denoiser, side, other)
    alone = make_side(denoiser, sample)
    train_lora(denoiser, alone.state.lora, alone.objective, [sample], TRAINING)
    torch.testing.assert_close(flatten(side), flatten(alone))


def test_a_side_trains_otherwise_beside_a_lora_that_is_on(denoiser, sample):
    trained = []
    for strengths in (OFF, ON):
        side = make_side(denoiser, sample)
        train_jointly(denoiser, side, make_side(denoiser, sample, 1, 1, strengths, changed=True))
        trained.append(flatten(side))
    assert (trained[0] - trained[1]).norm() > 0.01 * trained[0].norm()


def test_both_sides_come_to_their_ends_together(denoiser, sample):
    long, short = make_side(denoiser, sample, steps=4), make_side(denoiser, sample, steps=2)
    order = []
    for side, _ in order_steps(long, short):
        side.state.step += 1
        order.append("long" if side is long else "short")
    assert order == ["long", "short", "long", "long", "short", "long"]


def test_averaged_arms_see_every_window_equally_often_in_each_step():
    for arm in AVERAGED:
        stack = StackedMotion.__new__(StackedMotion)
        stack.runs, stack.windows = [ArmRun(arm, "zigzag", 0)], [[None, None]]
        for stack.step in range(1, 5):
            drawn = [number for part in range(arm.accumulate) for number in stack._draw_windows(0, part)]
            assert sorted(drawn) == sorted([0, 1] * (arm.accumulate // 2))


def test_copies_of_a_clip_have_one_color_each(tmp_path):
    still = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(5, 3, 8, 8)
    clip = MotionClip("clip", tmp_path, still, "a caption", 8.0, [])
    first, second = make_colored_copies(clip, 2, seed=0)
    assert all(torch.equal(copy.frames[0], copy.frames[4]) for copy in (first, second))
    assert (first.frames - second.frames).abs().mean() > 0.05 and first.name != second.name
    assert torch.equal(make_colored_copies(clip, 1, seed=0)[0].frames, first.frames)


def test_pixels_are_trusted_where_the_flow_back_leads_back():
    forth = torch.zeros(1, 2, 4, 8)
    forth[:, 0] = 2.0
    trusted = check_consistency(forth, -forth)
    assert trusted[..., :6].all()  # what moves out of the picture at the right has no way back
    # The way back is read where the way forth ends: pixels that land on columns 4 to 7 find it broken.
    broken = -forth
    broken[..., 4:] = 0
    assert check_consistency(forth, broken)[0, 0, 0].tolist() == [True] * 2 + [False] * 4 + [False] * 2


def test_rank_correlations_are_those_by_hand():
    assert correlate_ranks([1, 2, 3], [10, 30, 20]) == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)
    assert rank_values([5, 1, 5, 9]).tolist() == [
        2.5,
        1,
        2.5,
        4,
    ]  # equal values share the mean of their ranks
    shares = {"q": [0.1, 0.2], "v": [0.5, 0.4], "o": [0.2, 0.3]}
    text = render_roles([{"lora": "ball", "videos": shares, "velocity": shares}])
    assert "| ball | videos, alone | 10% | 50% | 20% | 1.00 |" in text and text.count("\n") == 5


def test_pairs_are_compared_pair_by_pair():
    lines = [
        {
            "seed": seed,
            "clip leak": 0.5 + seed,
            "copies leak": 0.2 + seed,
            "clip error": 1.0,
            "copies error": 1.0,
        }
        for seed in range(2)
    ]
    assert "| leak, 2 pairs | 1.00 (0.50..1.50) | 0.70 (0.20..1.20) | -0.30 (-0.30..-0.30) |" in render_pairs(
        lines
    )


@pytest.mark.parametrize("idea", IDEAS)
def test_every_idea_is_tried_by_its_command(monkeypatch, capsys, tmp_path, idea):
    for module, name in ((color_jitter, "jitter"), (flow_confidence, "confidence"), (role_videos, "roles")):
        monkeypatch.setattr(module, f"run_{name}", lambda folder, *seeds, name=name: f"{name} in {folder}")
    main(["try", idea, "--out", str(tmp_path)])
    assert capsys.readouterr().out == f"{idea} in {tmp_path}\n"
