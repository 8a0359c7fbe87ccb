"""An image-to-video model from files: what it takes of a clip, and training on it."""

import pytest
import torch
from random_models import Sizes, write_random_wan

from smra_core.data.color_copies import add_color_copies
from smra_core.data.motion_clip import MotionClip
from smra_core.lora.adapter import Injection, init_lora, injected
from smra_core.lora.plan import MOTION
from smra_core.standalone.backend import StandaloneBackend
from smra_core.standalone.generate import generate
from smra_core.standalone.image_condition import make_image_conditions
from smra_core.standalone.model_files import find_wan_files
from smra_core.storage.tensor_cache import TensorCache
from smra_core.training.motion import prepare_motion, train_motion
from smra_core.training.motion_settings import MotionSettings
from smra_core.training.train_settings import TrainSettings
from smra_core.wan.condition import IMAGE_CHANNELS, stack_inputs
from smra_core.wan.sampler import SamplingSettings
from smra_core.wan.spec import LATENTS_21

FRAMES, LATENTS, SIDE = 5, 2, 32
SETTINGS = MotionSettings(rank=2, width=SIDE, height=SIDE, frames=FRAMES, mora_weight=0.0)
TRAIN = TrainSettings(steps=2, accumulate=1)


@pytest.fixture(scope="module", params=["native", "diffusers"])
def files(request, tmp_path_factory):
    options = write_random_wan(tmp_path_factory.mktemp("i2v"), Sizes(image_channels=20), request.param)
    return find_wan_files(*options[1::2])


@pytest.fixture
def backend(tmp_path, files):
    cpu = torch.device("cpu")
    return StandaloneBackend(files, tmp_path / "runs", TensorCache(tmp_path / "cache"), cpu, torch.float32)


def clip(change=0.0):
    pixels = torch.rand(FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    pixels[0] = (pixels[0] + change).clamp(0, 1)
    return MotionClip("clip", None, pixels, "a person is vvt walking", 16.0, [])


def test_the_first_frame_is_shown_and_gray_after_it():
    seen = []

    def encode(clips):
        seen.extend(clips)
        return [torch.full((16, LATENTS, 4, 4), 2.0) for _ in clips]

    frames = clip().frames
    (condition,) = make_image_conditions([frames], LATENTS_21, encode)
    assert torch.equal(seen[0][0], frames[0]) and (seen[0][1:] == 0.5).all()
    mask, image = condition.inputs[IMAGE_CHANNELS].split([4, 16])
    assert mask[:, 0].all() and not mask[:, 1:].any() and (image == 2).all()
    assert condition.given.tolist() == [True, False]


def test_a_picture_is_trained_with_the_image_left_out_and_this_is_said(caplog):
    caplog.set_level("INFO", "smrabooth")
    (condition,) = make_image_conditions([clip().frames[:1]], LATENTS_21, lambda clips: [])
    image = condition.inputs[IMAGE_CHANNELS]
    assert image.shape == (20, 1, 4, 4) and not image.any() and condition.given is None
    assert "with the image left out (zeros)" in caplog.text


def test_the_condition_is_what_diffusers_pipeline_makes(backend, files):
    """Mask and latents of WanImageToVideoPipeline.prepare_latents, with the mean of the posterior."""
    from diffusers import WanImageToVideoPipeline

    codec = files.load_codec(torch.float32, torch.device("cpu"))
    pipeline = WanImageToVideoPipeline(None, None, codec.vae, None)
    frame = clip().frames[:1] * 2 - 1
    _, expected = pipeline.prepare_latents(
        frame, 1, 16, SIDE, SIDE, FRAMES, torch.float32, torch.device("cpu"),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    (condition,) = backend.make_conditions([clip().frames])
    torch.testing.assert_close(condition.inputs[IMAGE_CHANNELS], expected[0], atol=1e-5, rtol=1e-5)


def test_gradients_with_an_image_equal_finite_differences(files, finite_difference):
    denoiser = files.load_denoiser(torch.float64, torch.device("cpu"))
    denoiser.dit.double()
    torch.manual_seed(0)
    noisy, context = torch.randn(1, 16, LATENTS, 4, 4).double(), torch.randn(1, 3, 8).double()
    extra = stack_inputs([{IMAGE_CHANNELS: torch.randn(20, LATENTS, 4, 4)}])
    lora = init_lora(denoiser.spec, MOTION, 2, torch.Generator().manual_seed(0))
    for pair in lora.values():
        pair.double().b.data.normal_(std=0.1)
    with injected(denoiser.linears(), Injection(lora)):

        def total():
            velocity = denoiser.velocity(noisy, torch.tensor([0.4]), context, extra=extra).velocity
            return velocity.square().mean()

        total().backward()
        parameter = lora["blocks.0.self_attn.v"].a
        direction = torch.randn_like(parameter)
        slope = finite_difference(total, parameter, direction, step=3e-2)
    # diffusers computes norms and modulations in float32 whatever it is given: hence the wide step.
    assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=2e-2, abs=1e-5)


class Canceled(BaseException):
    pass


def stop_after_first(info):
    raise Canceled


def test_a_motion_is_trained_and_a_canceled_run_resumes_bit_for_bit(backend):
    with pytest.raises(Canceled):
        train_motion(backend, [clip()], None, SETTINGS, TRAIN, on_step=stop_after_first)
    trained = train_motion(backend, [clip()], None, SETTINGS, TRAIN)
    resumed = trained.path.read_bytes()
    trained.path.parent.rename(backend.runs / "kept")
    assert train_motion(backend, [clip()], None, SETTINGS, TRAIN).path.read_bytes() == resumed


def test_another_first_frame_is_another_condition_and_text_to_video_has_none(backend):
    first, other = prepare_motion(backend, [clip(0.0), clip(0.2)], None)
    assert not torch.equal(first.extra[IMAGE_CHANNELS], other.extra[IMAGE_CHANNELS])
    assert first.given.tolist() == [True, False]


def test_a_copy_in_other_colors_has_its_own_first_frame(backend):
    clips = add_color_copies([clip()], 1, seed=0)
    first, copy = prepare_motion(backend, clips, None)
    (expected,) = backend.make_conditions([clips[1].frames])
    assert torch.equal(copy.extra[IMAGE_CHANNELS], expected.inputs[IMAGE_CHANNELS])
    assert not torch.equal(copy.extra[IMAGE_CHANNELS], first.extra[IMAGE_CHANNELS])


def test_videos_from_text_alone_are_refused(backend):
    with pytest.raises(ValueError, match="image to video.*makes videos from an image"):
        generate(backend, ["a dog"], [], SamplingSettings(width=SIDE, height=SIDE, frames=5))
