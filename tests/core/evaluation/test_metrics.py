import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smra_core.evaluation.metrics import (
    METRIC_HELP,
    average_pairwise_cosine,
    average_patches,
    chain_tracks,
    measure_motion_amount,
    measure_motion_fidelity,
    measure_motion_fidelity_axes,
    measure_temporal_consistency,
)

HEIGHT, WIDTH, STEPS, GRID = 12, 16, 4, 4


def drift(dx, dy, steps=STEPS, height=HEIGHT, width=WIDTH):
    """Flow `steps 2 H W` of everything moving by (dx, dy) pixels per frame."""
    return torch.tensor([dx, dy], dtype=torch.float32).view(1, 2, 1, 1).expand(steps, 2, height, width)


def walk(*displacements):
    """One visible track from its steps: positions `1 F 2`, visible `1 F`."""
    positions = torch.tensor([(0.0, 0.0), *displacements]).cumsum(0)[None]
    return positions, torch.ones(positions.shape[:2], dtype=torch.bool)


def fidelity(flow_a, flow_b, grid=GRID):
    return measure_motion_fidelity(*chain_tracks(flow_a, grid), *chain_tracks(flow_b, grid))


def test_pairwise_cosine_by_hand():
    frames = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    references = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    # Cosines: 1 and sqrt(1/2) for the first frame, 0 and sqrt(1/2) for the second.
    assert average_pairwise_cosine(frames, references) == pytest.approx((1 + 2**0.5) / 4)


def test_temporal_consistency_by_hand():
    frames = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert measure_temporal_consistency(frames) == pytest.approx((1 + 0 - 1) / 3)


def test_temporal_consistency_of_one_frame_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        measure_temporal_consistency(torch.ones(1, 3))


def test_a_black_frame_without_features_gives_no_nan():
    assert average_pairwise_cosine(torch.zeros(2, 3), torch.ones(1, 3)) == 0
    assert measure_temporal_consistency(torch.zeros(2, 3)) == 0


def test_mean_patch_averages_the_patches_of_each_frame():
    patches = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [2.0, 2.0]]])
    assert average_patches(patches).tolist() == [[2.0, 4.0], [1.0, 1.0]]


def test_motion_amount_is_the_ratio_of_mean_lengths():
    assert measure_motion_amount(drift(3, 4), drift(0, 2)) == pytest.approx(2.5)
    assert measure_motion_amount(drift(0, 0), drift(0, 2)) == 0
    assert measure_motion_amount(drift(0, 0), drift(0, 0)) == 0


def test_points_start_in_the_middle_of_equal_cells():
    positions, visible = chain_tracks(drift(0, 0, height=4, width=8), 2)
    assert positions[:, 0].tolist() == [[1.5, 0.5], [5.5, 0.5], [1.5, 2.5], [5.5, 2.5]]
    assert torch.equal(positions, positions[:, :1].expand_as(positions)) and visible.all()


def test_points_follow_a_drift_and_are_lost_for_good_where_they_leave():
    positions, visible = chain_tracks(drift(2, 0, height=4, width=8), 2)
    assert positions[0, :, 0].tolist() == pytest.approx([1.5, 3.5, 5.5, 7.5, 9.5])
    assert positions[0, :, 1].tolist() == pytest.approx([0.5] * 5)
    assert visible[0].tolist() == [True, True, True, True, False]
    assert visible[1].tolist() == [True, True, False, False, False]
    there_and_back = torch.cat([drift(2, 0, 2, 4, 8), drift(-2, 0, 2, 4, 8)])
    assert chain_tracks(there_and_back, 2).visible[1].tolist() == [True, True, False, False, False]


def test_flow_is_read_bilinearly_between_pixels():
    ramp = torch.zeros(1, 2, 4, 8)
    ramp[0, 0] = torch.arange(8.0) / 10
    ramp[0, 1] = torch.arange(4.0)[:, None] / 10
    positions, _ = chain_tracks(ramp, 2)
    assert positions[3, 1].tolist() == pytest.approx([5.5 + 0.55, 2.5 + 0.25])


def test_a_zoom_keeps_points_on_their_rays():
    center = torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    y, x = torch.meshgrid(torch.arange(float(HEIGHT)), torch.arange(float(WIDTH)), indexing="ij")
    zoom = 0.1 * torch.stack([x - center[0], y - center[1]]).expand(2, 2, HEIGHT, WIDTH)
    positions, visible = chain_tracks(zoom, GRID)
    inner = visible.all(1)
    assert inner.sum() >= 4
    expected = center + 1.1**2 * (positions[inner, 0] - center)
    assert torch.allclose(positions[inner, 2], expected, atol=1e-4)


def test_a_point_whose_way_back_misses_is_covered():
    forth, back = drift(2, 0, 2), drift(-2, 0, 2).clone()
    assert torch.equal(chain_tracks(forth, 1, back).visible, chain_tracks(forth, 1).visible)
    back[1] = 0  # off by 2 px, allowed 1 + 0.05 * 2
    assert chain_tracks(forth, 1, back).visible.tolist() == [[True, True, False]]
    back[1, 0] = -1  # off by 1 px
    assert chain_tracks(forth, 1, back).visible.all()


def test_a_grid_without_points_is_refused():
    with pytest.raises(ValueError, match="at least 1 point"):
        chain_tracks(drift(1, 0), 0)


def test_equal_drift_is_100_opposite_minus_100_and_orthogonal_0():
    assert fidelity(drift(1, 0.5), drift(1, 0.5)) == pytest.approx(100)
    assert fidelity(drift(1, 0.5), drift(-1, -0.5)) == pytest.approx(-100)
    assert fidelity(drift(1, 0), drift(0, 1)) == pytest.approx(0, abs=1e-9)


def test_speed_does_not_count_only_direction():
    assert fidelity(drift(1, 1), drift(0.3, 0.3)) == pytest.approx(100)


def test_an_angle_of_60_degrees_scores_50():
    a, b = walk((1.0, 0.0), (1.0, 0.0)), walk((0.5, 3**0.5 / 2), (0.5, 3**0.5 / 2))
    assert measure_motion_fidelity(*a, *b) == pytest.approx(50, abs=1e-4)


def test_the_mean_runs_over_steps_one_in_two_agreeing():
    a, b = walk((1.0, 0.0), (0.0, 1.0)), walk((1.0, 0.0), (1.0, 0.0))
    assert measure_motion_fidelity(*a, *b) == pytest.approx(50)


def test_both_directions_count():
    right, left = walk((1.0, 0.0)), walk((-1.0, 0.0))
    both = torch.cat([right[0], left[0]]), torch.cat([right[1], left[1]])
    # `right` finds its match (1); of `both` one finds its match (1) and one its opposite (-1).
    assert measure_motion_fidelity(*right, *both) == pytest.approx(50)
    assert measure_motion_fidelity(*both, *right) == pytest.approx(50)


def test_a_static_clip_scores_zero_and_not_nan():
    assert fidelity(drift(0, 0), drift(1, 0)) == 0
    assert fidelity(drift(1, 0), drift(0, 0)) == 0
    assert fidelity(drift(0, 0), drift(0, 0)) == 0


def test_a_still_background_does_not_decide():
    right, left, still = walk((1.0, 0.0)), walk((-1.0, 0.0)), walk((0.01, 0.0))
    a, b = ([torch.cat([mover[i], still[i], still[i]]) for i in (0, 1)] for mover in (right, left))
    assert measure_motion_fidelity(*a, *a) == pytest.approx(100)
    assert measure_motion_fidelity(*a, *b) == pytest.approx(-100)


def test_steps_in_which_both_stand_are_dropped_and_one_standing_counts_as_no_match():
    a = walk((1.0, 0.0), (0.0, 0.0), (1.0, 0.0))
    assert measure_motion_fidelity(*a, *walk((1.0, 0.0), (0.05, -0.05), (1.0, 0.0))) == pytest.approx(100)
    assert measure_motion_fidelity(*a, *walk((1.0, 0.0), (1.0, 0.0), (1.0, 0.0))) == pytest.approx(200 / 3)


def test_only_steps_visible_in_both_are_compared():
    a, (positions, visible) = walk((1.0, 0.0), (1.0, 0.0)), walk((1.0, 0.0), (-1.0, 0.0))
    assert measure_motion_fidelity(*a, positions, visible) == pytest.approx(0)
    visible[0, 2] = False
    assert measure_motion_fidelity(*a, positions, visible) == pytest.approx(100)


def test_a_match_by_luck_in_too_few_steps_does_not_count():
    a = walk(*[(1.0, 0.0)] * 4)
    short, seen = walk(*[(1.0, 0.0)] * 4)
    seen[0, 2:] = False  # agrees, for one step of four
    opposite = walk(*[(-1.0, 0.0)] * 4)
    b = torch.cat([short, opposite[0]]), torch.cat([seen, opposite[1]])
    # a's best is the opposite (-1); of b, the short one agrees (1) and the other opposes (-1).
    assert measure_motion_fidelity(*a, *b) == pytest.approx(50 * (-1 + 0))


def test_clips_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="5 and 4 frames"):
        fidelity(drift(1, 0, 4), drift(1, 0, 3))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 3.0))
def test_fidelity_is_symmetric_in_range_and_100_with_itself(seed, speed):
    generator = torch.Generator().manual_seed(seed)
    a, b = speed * torch.randn(2, 3, 2, 6, 6, generator=generator)
    score = fidelity(a, b, 3)
    assert -100.0001 <= score <= 100.0001
    assert score == pytest.approx(fidelity(b, a, 3), abs=1e-9)
    tracks = chain_tracks(a, 3)
    if (tracks.visible[:, 1] & (tracks.positions.diff(dim=1)[:, 0].norm(dim=-1) > 0.5)).any():
        assert fidelity(a, a, 3) == pytest.approx(100)


def test_the_axes_show_what_the_common_score_hides():
    straight = walk(*[(3.0, 0.0)] * 4)
    zigzag = walk((3.0, 0.6), (3.0, -0.6), (3.0, 0.6), (3.0, -0.6))
    anti = walk((3.0, -0.6), (3.0, 0.6), (3.0, -0.6), (3.0, 0.6))
    assert measure_motion_fidelity(*zigzag, *straight) > 95
    assert measure_motion_fidelity_axes(*zigzag, *straight) == pytest.approx((100, 0))
    assert measure_motion_fidelity_axes(*zigzag, *anti) == pytest.approx((100, -100))


def test_every_figure_has_a_name_and_a_sentence():
    assert "Motion Fidelity (flow)" in METRIC_HELP
    assert all(text.endswith(".") for text in METRIC_HELP.values())
