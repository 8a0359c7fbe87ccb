"""Values that settings refuse where they are made, before anything is loaded."""

import math

import pytest

from smra_core.lora.plan import SparsePlan
from smra_core.training.model_fit import check_fit
from smra_core.training.motion_settings import MotionSettings
from smra_core.training.sura import SubjectSettings
from smra_core.training.train_settings import TrainSettings
from smra_core.wan.sampler import SamplingSettings
from smra_core.wan.spec import WAN_1_3B, WAN_5B

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("settings, name, values", [
    (SubjectSettings, "rank", [0, -1]),
    (SubjectSettings, "sura_weight", [-1.0, NAN, INF]),
    (SubjectSettings, "align_block", [-1]),
    (SubjectSettings, "projector_width", [0]),
    (SubjectSettings, "shift", [0.0, -1.0, NAN, INF]),
    (MotionSettings, "rank", [0, -1]),
    (MotionSettings, "mora_weight", [-1.0, NAN, INF]),
    (MotionSettings, "frames", [1, 0, -3]),
    (MotionSettings, "shift", [0.0, NAN]),
    (MotionSettings, "window", [0]),
    (TrainSettings, "steps", [0, -5]),
    (TrainSettings, "batch_size", [0]),
    (TrainSettings, "accumulate", [0]),
    (TrainSettings, "learning_rate", [0.0, -1e-4, NAN, INF]),
    (TrainSettings, "weight_decay", [-0.1, NAN, INF]),
    (TrainSettings, "grad_clip", [-1.0, NAN, INF]),
    (TrainSettings, "seed", [2**70, 2**64, -(2**63) - 1]),
    (TrainSettings, "save_every", [0]),
    (TrainSettings, "save_minutes", [0.0, NAN]),
    (SamplingSettings, "steps", [0]),
    (SamplingSettings, "shift", [0.0, -1.0, NAN, INF]),
    (SamplingSettings, "guidance", [NAN, INF, -INF]),
    (SamplingSettings, "fps", [0, -1, 5000]),
    (SamplingSettings, "seed", [2**70]),
])  # fmt: skip
def test_a_number_out_of_range_is_named_with_its_value_and_default(settings, name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value}\."):
            settings(**{name: value})


@pytest.mark.parametrize("settings", [SubjectSettings, MotionSettings, SamplingSettings])
@pytest.mark.parametrize("size", [{"width": 100}, {"height": 72}, {"width": 0}, {"height": -16}])
def test_sizes_that_are_no_multiples_of_16_are_refused(settings, size):
    with pytest.raises(ValueError, match=r"is not a multiple of 16\. Use"):
        settings(**size)


@pytest.mark.parametrize("settings", [MotionSettings, SamplingSettings])
def test_frames_are_4n_plus_1(settings):
    with pytest.raises(ValueError, match=r"WAN needs 4n\+1 frames, got 50\. Use 49 or 53"):
        settings(frames=50)


def test_the_message_says_what_is_allowed():
    for settings, said in (
        (
            lambda: SamplingSettings(fps=5000),
            "fps must be above 0 and at most 1000, got 5000. The default is 15.",
        ),
        (lambda: SamplingSettings(guidance=NAN), "guidance must be finite, got nan. The default is 5.0."),
        (lambda: TrainSettings(steps=0), "steps must be at least 1, got 0. The default is 1000."),
        (
            lambda: MotionSettings(mora_weight=INF),
            "mora_weight must be finite and at least 0, got inf. The default is 1.0.",
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError) as error:
            settings()
        assert str(error.value) == said


def test_values_at_the_limits_are_taken():
    assert SubjectSettings(sura_weight=0.0, align_block=0, rank=1, width=16, height=16).rank == 1
    assert MotionSettings(mora_weight=0.0, frames=5).frames == 5
    assert TrainSettings(seed=2**64 - 1, grad_clip=0.0, weight_decay=0.0, save_minutes=INF).steps == 1000
    assert SamplingSettings(fps=1000, guidance=-1.0, seed=-1, frames=1).fps == 1000


def test_sizes_that_the_tokens_of_the_model_do_not_divide_are_refused():
    for settings in (SubjectSettings, MotionSettings):
        check_fit(settings(), WAN_5B)  # the paper's sizes are on both grids
        check_fit(settings(width=528), WAN_1_3B)
        with pytest.raises(ValueError, match="Size 528x.* is not a multiple of 32"):
            check_fit(settings(width=528), WAN_5B)


def test_a_first_frame_among_the_latents_is_for_ti2v_5b_alone():
    given = MotionSettings(first_frame_share=0.5)
    check_fit(given, WAN_5B)
    with pytest.raises(ValueError, match="first_frame_share is 0.5, but Wan2.1-T2V-1.3B takes no frame"):
        check_fit(given, WAN_1_3B)


def test_blocks_that_the_model_lacks_are_refused():
    check_fit(SubjectSettings(align_block=29), WAN_1_3B)
    check_fit(SubjectSettings(align_block=30, sura_weight=0.0), WAN_1_3B)
    check_fit(MotionSettings(plan=SparsePlan.parse("v,o@10:30")), WAN_1_3B)
    with pytest.raises(ValueError, match="align_block is 30, but this model has blocks 0 to 29"):
        check_fit(SubjectSettings(align_block=30), WAN_1_3B)
    for plan in ("v,o@10:31", "v@30:40"):
        for settings in (MotionSettings, SubjectSettings):
            with pytest.raises(ValueError, match=r"Plan v.* names blocks .* blocks 0 to 29\. Give a range"):
                check_fit(settings(plan=SparsePlan.parse(plan)), WAN_1_3B)
    with pytest.raises(ValueError, match="names no layer"):
        check_fit(MotionSettings(plan=SparsePlan(frozenset())), WAN_1_3B)
