"""SEA-RAFT as a net: parity with a known implementation, sizes, gradients, streaming."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from make_sea_raft_golden import (
    GOLDEN,
    STRIDE,
    seeded_frames,
    seeded_weights,
)
from safetensors.torch import load_file, save_file

from smra_core.encoders.sea_raft import SeaRaft
from smra_core.encoders.sea_raft_config import SEA_RAFT_M, SEA_RAFT_MINIATURE, SEA_RAFT_S, choose_scale
from smra_core.encoders.sea_raft_layers import (
    CorrelationPyramid,
    ResidualBlock,
    convolve_and_normalize,
    upsample_convex,
)

PARITY_PX = 1e-3
SIDE = 64
PUBLISHED = {"s": SEA_RAFT_S, "m": SEA_RAFT_M}


def seeded_net(config):
    net = SeaRaft(config)
    net.load_state_dict(seeded_weights({name: value.shape for name, value in net.state_dict().items()}))
    return net.freeze()


@pytest.fixture(scope="module")
def miniature():
    return seeded_net(SEA_RAFT_MINIATURE)


def clip(frames, height=SIDE, width=SIDE, seed=0):
    noise = torch.rand(frames, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return 255 * torch.nn.functional.interpolate(noise, size=(height, width), mode="bilinear")


@pytest.mark.parametrize("size", PUBLISHED)
def test_flow_equals_the_golden_flow_of_an_independent_implementation(size):
    net = seeded_net(replace(PUBLISHED[size], scale=0))
    first, second = seeded_frames().split(1)
    expected = load_file(GOLDEN)[size]
    assert expected.std() > 0.5  # a flow that varies, or this would show little
    found = net.flow(first, second)[0, :, ::STRIDE, ::STRIDE]
    assert (found - expected).abs().max() < PARITY_PX


def flow_of_ptlflow(size, frames, folder):
    """ptlflow's flow `2 H W`, from the environment that PTLFLOW_PYTHON names, or from this one."""
    python = os.environ.get("PTLFLOW_PYTHON")
    if python is None:
        pytest.importorskip("ptlflow", reason="ptlflow is an optional oracle: set PTLFLOW_PYTHON to a python")
    save_file({"frames": frames}, folder / "frames.safetensors")
    script = Path(__file__).parents[1] / "golden" / "make_sea_raft_golden.py"
    command = [
        python or sys.executable,
        script,
        size,
        folder / "frames.safetensors",
        folder / "flow.safetensors",
    ]
    subprocess.run(command, check=True, timeout=900)
    return load_file(folder / "flow.safetensors")["flow"]


@pytest.mark.parametrize("size", PUBLISHED)
def test_flow_equals_ptlflow_where_it_is_installed(size, tmp_path):
    frames = clip(2, 136, 152)
    expected = flow_of_ptlflow(size, frames, tmp_path)
    found = seeded_net(replace(PUBLISHED[size], scale=0)).flow(*frames.split(1))[0]
    assert (found - expected).abs().max() < PARITY_PX


def test_half_scale_is_the_flow_of_halved_frames_enlarged_and_doubled(miniature):
    half = SeaRaft(replace(SEA_RAFT_MINIATURE, scale=-1))
    half.load_state_dict(miniature.state_dict())
    a, b = clip(2, 96, 128).split(1)
    small = [torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear") for x in (a, b)]
    inner = torch.nn.functional.interpolate(miniature.flow(*small), scale_factor=2.0, mode="bilinear") * 2
    torch.testing.assert_close(half.flow(a, b), inner)


def test_sizes_that_are_no_multiple_of_eight_give_flow_of_that_size(miniature):
    assert miniature.flow(*clip(2, 61, 83).split(1)).shape == (1, 2, 61, 83)
    half = SeaRaft(replace(SEA_RAFT_MINIATURE, scale=-1))
    assert half.flow(*clip(2, 71, 85).split(1)).shape == (1, 2, 71, 85)


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(256, 512, -1), (320, 576, -1), (255, 512, 0), (128, 128, 0)]
)
def test_small_frames_are_compared_at_full_size(height, width, scale):
    assert choose_scale(SEA_RAFT_M, height, width) == scale


def test_frames_below_the_least_size_are_refused_by_name_and_size(miniature):
    with pytest.raises(ValueError, match=r"200x127 are too small for SEA-RAFT M.*128 px"):
        choose_scale(SEA_RAFT_M, 127, 200)
    with pytest.raises(ValueError, match="at least 32 px"):
        miniature.flow(*clip(2, 24, 64).split(1))


def test_flow_is_finite_at_the_least_size(miniature):
    least = SEA_RAFT_MINIATURE.least_side
    frames = clip(2, least, least).requires_grad_()
    flow = miniature.compute_pair_flows(frames)
    flow.sum().backward()
    assert flow.isfinite().all() and frames.grad.isfinite().all()


def test_unequal_frames_and_lone_frames_are_refused(miniature):
    with pytest.raises(ValueError, match="two equal batches"):
        miniature.flow(clip(1), clip(2))
    with pytest.raises(ValueError, match="F >= 2"):
        miniature.compute_pair_flows(clip(1))


def test_a_clip_gives_the_flow_of_each_pair_whatever_the_chunk(miniature):
    frames = clip(6)
    pairs = torch.cat([miniature.flow(frames[i : i + 1], frames[i + 1 : i + 2]) for i in range(5)])
    for pairs_per_chunk in (1, 2, 5, 8):
        torch.testing.assert_close(
            miniature.compute_pair_flows(frames, pairs_per_chunk), pairs, rtol=1e-4, atol=1e-4
        )


def test_chunks_recomputed_in_backward_give_the_gradient_of_one_graph():
    net = seeded_net(SEA_RAFT_MINIATURE).double()
    net._prepare_frames = lambda frames: (
        2 * (frames / 255) - 1
    )  # the public path is float32: too coarse to compare
    weight = torch.randn(4, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = []
    for pairs_per_chunk in (1, 3, 4):
        frames = clip(5).double().requires_grad_()
        (net.compute_pair_flows(frames, pairs_per_chunk) * weight).sum().backward()
        gradients.append(frames.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients[1], gradients[2], rtol=1e-9, atol=1e-12)


def test_features_are_computed_once_per_frame(miniature):
    seen = []
    hook = miniature.fnet.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    try:
        miniature.compute_pair_flows(clip(5), pairs_per_chunk=4)
    finally:
        hook.remove()
    assert seen == [5]


def test_every_pixel_of_both_frames_gets_a_finite_gradient_and_no_weight_does(miniature):
    frames = clip(2).requires_grad_()
    miniature.compute_pair_flows(frames).square().sum().backward()
    assert frames.grad.isfinite().all()
    assert (frames.grad != 0).float().mean((1, 2, 3)).min() > 0.99
    assert all(p.grad is None and not p.requires_grad for p in miniature.parameters())


def test_first_guess_has_the_exact_gradient():
    # Without refinements nothing is detached, so finite differences must agree.
    net = seeded_net(replace(SEA_RAFT_MINIATURE, iterations=0)).double()
    a, b = (clip(1, 32, 32, seed).double() for seed in (1, 2))
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def loss(x):
        return net.estimate_refinements(x, b)[-1].flow.square().mean()

    x = a.clone().requires_grad_()
    loss(x).backward()
    step = 1e-4
    with torch.no_grad():
        slope = (loss(a + step * direction) - loss(a - step * direction)) / (2 * step)
    torch.testing.assert_close((x.grad * direction).sum(), slope, rtol=1e-5, atol=1e-12)


def test_refinements_cut_the_gradient_of_accumulated_flow(miniature):
    frames = clip(2)
    with torch.no_grad():
        features = miniature.fnet(frames / 127.5 - 1)
    hidden = torch.zeros(1, SEA_RAFT_MINIATURE.dim, 8, 8, requires_grad=True)
    miniature_flow = miniature.flow_head(hidden)[:, :2]
    pyramid = CorrelationPyramid(features[:1], features[1:], levels=2, radius=3)
    assert pyramid.look_up(miniature_flow).requires_grad  # so it is the net that detaches, not the lookup
    steps = list(miniature._refine(*(frames / 127.5 - 1).requires_grad_().split(1), *features.split(1)))
    first, second = steps[0][0], steps[1][0]
    change_only = torch.autograd.grad(second.sum(), first, allow_unused=True)
    assert change_only == (None,)


def test_autocast_does_not_lower_the_precision(miniature):
    frames = clip(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = miniature.compute_pair_flows(frames)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, miniature.compute_pair_flows(frames))


def test_half_precision_frames_are_taken_up_to_float32(miniature):
    frames = clip(2).round().bfloat16()
    assert torch.equal(miniature.compute_pair_flows(frames), miniature.compute_pair_flows(frames.float()))


def test_a_frozen_net_never_trains_and_a_training_net_gives_no_flow():
    net = seeded_net(SEA_RAFT_MINIATURE)
    assert not torch.nn.Sequential(net).train()[0].training
    net.requires_grad_(True).train()
    with pytest.raises(ValueError, match="training mode"):
        net.flow(*clip(2).split(1))


def test_estimates_hold_the_first_guess_and_every_refinement(miniature):
    a, b = clip(2).split(1)
    estimates = miniature.estimate_refinements(a, b)
    assert len(estimates) == SEA_RAFT_MINIATURE.iterations + 1
    assert estimates[-1].info.shape == (1, 4, SIDE, SIDE)
    assert torch.equal(estimates[-1].flow, miniature.flow(a, b))


def test_folded_batch_norm_equals_the_two_layers():
    block = ResidualBlock(4, 6, stride=2).double().eval()
    for norm in (block.bn1, block.bn2, block.bn3):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(convolve_and_normalize(block.conv1, block.bn1, x), block.bn1(block.conv1(x)))
    torch.testing.assert_close(convolve_and_normalize(*block.downsample, x), block.downsample(x))


def test_first_index_of_the_correlation_window_moves_x():
    # One feature: cell (x, y) of the second map holds x + 10 y, so the similarity names the cell.
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    pyramid = CorrelationPyramid(torch.ones(1, 1, 8, 8), (x + 10 * y)[None, None], levels=1, radius=1)
    at = torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1).expand(1, 2, 8, 8)
    window = pyramid.look_up(at)[0, :, 0, 0].reshape(3, 3)
    torch.testing.assert_close(window, torch.tensor([[42.0, 52, 62], [43, 53, 63], [44, 54, 64]]))


def test_correlation_is_zero_outside_the_frame():
    pyramid = CorrelationPyramid(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4), levels=1, radius=0)
    far = torch.full((1, 2, 4, 4), -5.0)
    assert pyramid.look_up(far).abs().max() == 0


def test_convex_upsampling_with_all_weight_on_the_center_repeats_each_cell():
    flow = torch.arange(8.0).reshape(1, 2, 2, 2)
    logits = torch.full((1, 9, 64, 2, 2), -1e4)
    logits[:, 4] = 0
    big = upsample_convex(flow, logits.flatten(1, 2), gain=8)
    torch.testing.assert_close(big, 8 * flow.repeat_interleave(8, 2).repeat_interleave(8, 3))
