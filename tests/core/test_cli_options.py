"""What the command line makes of its options."""

import pytest

from smra_core import cli
from smra_core.commands.model_options import open_backend
from smra_core.commands.settings_options import read_settings
from smra_core.lora.plan import MOTION, SUBJECT
from smra_core.lora.schedule import Strengths, TPoint
from smra_core.training.motion_settings import MotionSettings
from smra_core.training.sura import SubjectSettings
from smra_core.training.train_settings import MOTION_TRAIN, SUBJECT_TRAIN
from smra_core.wan.noise_range import NoiseRange
from smra_core.wan.sampler import SamplingSettings


def parsed(*arguments):
    return cli.build_parser().parse_args(arguments)


def test_options_left_out_are_the_papers_settings():
    model = ["--model", "wan.safetensors"]
    subject = parsed("train-subject", "x", *model)
    motion, sample = parsed("train-motion", "x", *model), parsed("sample", "x", *model)
    assert read_settings(subject, SubjectSettings()) == SubjectSettings(rank=32, sura_weight=0.05)
    assert read_settings(subject, SUBJECT_TRAIN).steps == 1000
    assert read_settings(motion, MotionSettings()) == MotionSettings(rank=64, mora_weight=1.0)
    assert read_settings(motion, MOTION_TRAIN).steps == 400
    settings = read_settings(sample, SamplingSettings())
    sizes = settings.steps, settings.width, settings.height, settings.frames, settings.fps
    assert sizes == (50, 832, 480, 49, 15)
    assert sample.t_point == TPoint(0.7) and sample.motion_strength == Strengths(1.0, 1.0)


@pytest.mark.parametrize("model", [[], ["--model", "miniature"]])
def test_the_miniature_is_used_at_its_own_sizes_alone(model):
    subject, motion = parsed("train-subject", "x", *model), parsed("train-motion", "x", *model)
    assert read_settings(subject, SubjectSettings()) == SubjectSettings(width=64, height=64)
    assert read_settings(motion, MotionSettings()) == MotionSettings(width=64, height=64, frames=17)
    sample = read_settings(parsed("sample", "x", *model, "--width", "96"), SamplingSettings())
    assert (sample.width, sample.height, sample.frames, sample.shift) == (96, 64, 17, 1.0)


def test_a_forgotten_model_is_told(tmp_path, caplog):
    said = []
    for model in ([], ["--model", "miniature"]):
        caplog.clear()
        with caplog.at_level("INFO"):
            backend = open_backend(parsed("sample", "x", "--out", str(tmp_path), *model))
        assert backend.files.spec.blocks == 4
        said.append("No --model is given, so the miniature is used" in caplog.text)
    assert said == [True, False]


def test_options_can_be_switched_off_and_given_as_the_default():
    args = parsed("train-motion", "x", "--no-debias", "--weighted-velocity", "--shift", "3")
    settings = read_settings(args, MotionSettings())
    assert (settings.debias, settings.weighted_velocity, settings.shift) == (False, True, 3.0)


@pytest.mark.parametrize(
    "text, sigma", [("0.7", 0.7), ("15/50", 0.7), ("15/50@5", 0.92105), ("0/50", 1.0), ("50/50", 0.0)]
)
def test_t_point_is_a_sigma_or_a_step_of_a_run(text, sigma):
    assert parsed("sample", "x", "--t-point", text).t_point.sigma == pytest.approx(sigma, abs=1e-5)


def test_the_frame_rate_is_a_number_or_keep(capsys):
    assert parsed("train-motion", "x").frame_rate is None
    assert parsed("train-motion", "x", "--frame-rate", "24").frame_rate == 24.0
    assert parsed("train-motion", "x", "--frame-rate", "Keep").frame_rate == "keep"
    for wrong in ("fast", "0", "nan"):
        with pytest.raises(SystemExit):
            parsed("train-motion", "x", "--frame-rate", wrong)
        assert (
            f"'{wrong}' is no frame rate. Give frames per second, such as 16, or keep."
            in capsys.readouterr().err
        )


def test_strengths_and_plans_are_read_from_text():
    args = parsed(
        "sample", "x", "--subject-strength", "0.5,1", "--motion-strength", "2",
        "--motion-plan", "motion-without-ffn0",
    )  # fmt: skip
    assert args.subject_strength == Strengths(0.5, 1.0) and args.motion_strength == Strengths(2.0, 2.0)
    assert args.motion_plan.roles == MOTION.roles - SUBJECT.roles


@pytest.mark.parametrize("text", ["high-noise-expert", "high-noise expert"])
def test_a_noise_range_is_a_preset_or_two_numbers(text, capsys):
    args = parsed("train-motion", "x", "--model", "wan.safetensors", "--noise-range", text)
    assert read_settings(args, MotionSettings()).noise_range.expert == "high"
    other = parsed("train-subject", "x", "--noise-range", "0.6-1", "--ema-decay", "0.99")
    assert read_settings(other, SubjectSettings()).noise_range == NoiseRange(0.6, 1.0)
    assert read_settings(other, SUBJECT_TRAIN).ema_decay == 0.99
    with pytest.raises(SystemExit):
        parsed("train-motion", "x", "--noise-range", "loud")
    assert "Noise range 'loud' is not known. Give one of whole" in capsys.readouterr().err


@pytest.mark.parametrize("option, value, said", [
    ("--t-point", "soon", "'soon' is no noise level"),
    ("--t-point", "60/50", "T_point is step 60 of 50; give a step from 0 to 50"),
    ("--subject-strength", "1,2,3", "'1,2,3' is no strength. Give one number, or two as early,late."),
    ("--subject-plan", "w", "Plan 'w' is not known. Give one of"),
])  # fmt: skip
def test_options_that_mean_nothing_are_refused_in_our_words(option, value, said, capsys):
    with pytest.raises(SystemExit):
        parsed("sample", "x", option, value)
    assert f"argument {option}: " in (error := capsys.readouterr().err) and said in error
