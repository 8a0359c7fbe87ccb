import pytest
import torch
import torch.nn.functional as F
from toy_models import random_lora, smooth_flow

from smra_core.decoding.windows import DecodeWindow, take_whole_clip
from smra_core.lora.adapter import Injection, injected
from smra_core.training.gradient_share import backpropagate
from smra_core.training.mora import MotionObjective, MotionSample, draw_first_frames, flow_alignment_loss
from smra_core.training.motion_settings import MotionSettings
from smra_core.training.preservation import BaseModel
from smra_core.training.temporal_loss import compute_difference_loss, temporal_loss
from smra_core.wan.condition import DENOISE_MASK, IMAGE_CHANNELS, NO_INPUTS
from smra_core.wan.flow_matching import add_noise, velocity_target, velocity_weight
from smra_core.wan.interfaces import Prediction

BATCH, PAIRS, HEIGHT, WIDTH = 2, 3, 4, 8
LATENTS = (BATCH, 16, 3, 4, 4)


def test_an_unknown_flow_weight_is_refused():
    with pytest.raises(ValueError, match="'late' is not known"):
        MotionSettings(flow_weight="late")


@pytest.mark.parametrize("changes, message", [
    ({"window": 0}, "window must be at least 1"), ({"context": 0}, "context must be at least 1"),
    ({"decode": "whole"}, "'whole' is not known.*auto, exact"),
])  # fmt: skip
def test_settings_that_decode_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MotionSettings(**changes)


TEXT, FRAMES, SIDE = 6, 9, 16
SIGMA = torch.tensor([0.3, 0.8])


class Decoder:
    """A stand-in decoder, differentiable everywhere, that remembers one latent; counts what it decodes."""

    def __init__(self):
        torch.manual_seed(5)
        self.colors = torch.randn(4, 3, 32, dtype=torch.float64) / 4
        self.decoded = []

    def step(self, latents, past):
        self.decoded.append(latents)
        before = torch.zeros_like(latents[:, :, :1]) if past is None else past[0]
        seen = torch.cat([torch.cat([before, latents[:, :, :-1]], 2), latents], 1)
        frames = torch.tanh(torch.einsum("npc,bcthw->bptnhw", self.colors, seen)).flatten(2, 3)
        frames = frames[:, :, 3:] if past is None else frames
        return F.interpolate(frames, scale_factor=(1, 8, 8), mode="nearest"), (latents[:, :, -1:],)

    def finish(self, latents, past):
        return self.step(latents, past)[0]

    def stream(self, latents):
        past = None
        for latent in latents.split(1, 2):
            pixels, past = self.step(latent, past)
            yield pixels


def motion_batch(masked=False):
    torch.manual_seed(0)
    latents, noise = torch.randn(2, BATCH, 16, 3, 2, 2, dtype=torch.float64)
    context = torch.randn(BATCH, 3, TEXT, dtype=torch.float64)
    reference = 3 * torch.randn(BATCH, FRAMES - 1, 2, SIDE, SIDE, dtype=torch.float64)
    batch = MotionSample(["one", "two"], latents, context, reference)
    if not masked:
        return batch, noise
    mask_latent, kept = torch.ones(BATCH, 1, 3, 2, 2), torch.ones(BATCH, 1, 1, SIDE, SIDE)
    mask_latent[0, :, 1:, 0] = 0
    kept[0, ..., : SIDE // 2] = 0
    weight_px = (kept / kept.mean((1, 2, 3, 4), keepdim=True)).expand(-1, FRAMES - 1, -1, -1, -1)
    return batch._replace(mask_latent=mask_latent, flow_weight_px=weight_px), noise


def drawn_losses(objective, denoiser, sigma=SIGMA, batch=None, masked=False):
    usual, noise = motion_batch(masked)
    return objective.losses(denoiser, batch or usual, sigma, noise, torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "changes, masked",
    [
        ({"preserve_weight": 0.5}, False),
        ({"flow_weight": "clean", "debias": False}, False),
        ({"preserve_weight": 0.5}, True),
    ],
)
def test_lora_gradients_of_the_losses_equal_finite_differences(
    toy_denoiser, finite_difference, changes, masked
):
    denoiser = toy_denoiser().double()
    objective = MotionObjective(MotionSettings(mora_weight=2.0, **changes), Decoder(), smooth_flow)
    lora = random_lora(denoiser.spec, std=0.1, dtype=torch.float64)
    injection = Injection(lora)
    objective.base = BaseModel(denoiser, injection)

    def total():
        losses = drawn_losses(objective, denoiser, masked=masked)
        return sum(objective.weights[name] * value.mean() for name, value in losses.items())

    with injected(denoiser.linears(), injection):
        total().backward()
        for name in ("blocks.0.self_attn.v", "blocks.1.ffn.2"):
            for parameter in lora[name].parameters():
                direction = torch.randn_like(parameter)
                slope = finite_difference(total, parameter, direction)
                assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_mora_has_the_told_share_of_the_loras_gradient(toy_denoiser):
    denoiser, share = toy_denoiser().double(), 0.3
    settings = MotionSettings(mora_weight=2.0, mora_share=share)
    objective = MotionObjective(settings, Decoder(), smooth_flow)
    lora = random_lora(denoiser.spec, std=0.1, dtype=torch.float64)
    parameters = [parameter for pair in lora.values() for parameter in pair.parameters()]
    with injected(denoiser.linears(), Injection(lora)):
        losses = drawn_losses(objective, denoiser)
        temporal, mora = (
            torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, retain_graph=True)])
            for loss in (losses["temporal"].mean(), losses["mora"].mean())
        )
        backpropagate(losses, objective.weights, objective.shares, parameters, [])
    added = torch.cat([parameter.grad.flatten() for parameter in parameters]) - temporal
    assert added.norm() / (added.norm() + temporal.norm()) == pytest.approx(share, rel=1e-6)
    assert F.cosine_similarity(added, mora, dim=0) == pytest.approx(1)


def test_mora_is_the_flow_error_of_the_decoded_prediction(toy_denoiser):
    denoiser, decoder = toy_denoiser().double(), Decoder()
    batch, noise = motion_batch()
    noisy = add_noise(batch.latents, noise, SIGMA)
    x0 = noisy - SIGMA.double().view(-1, 1, 1, 1, 1) * denoiser.velocity(noisy, SIGMA, batch.context).velocity
    pixels = torch.cat([*decoder.stream(x0)], 2).transpose(1, 2)
    flow = torch.stack([smooth_flow((clip + 1) * 127.5) for clip in pixels])
    losses = drawn_losses(MotionObjective(MotionSettings(), decoder, smooth_flow), denoiser)
    torch.testing.assert_close(losses["mora"], flow_alignment_loss(flow, batch.reference_flow))


@pytest.mark.parametrize("decode", ["exact", "exact-low-memory"])
def test_mora_with_a_mask_is_the_flow_error_where_the_mask_keeps_the_clip(toy_denoiser, decode):
    denoiser, decoder = toy_denoiser().double(), Decoder()
    batch, noise = motion_batch(masked=True)
    noisy = add_noise(batch.latents, noise, SIGMA)
    x0 = noisy - SIGMA.double().view(-1, 1, 1, 1, 1) * denoiser.velocity(noisy, SIGMA, batch.context).velocity
    pixels = torch.cat([*decoder.stream(x0)], 2).transpose(1, 2)
    flow = torch.stack([smooth_flow((clip + 1) * 127.5) for clip in pixels])
    error = (flow - batch.reference_flow).abs().sum(2) / SIDE
    expected = torch.stack([error[0, ..., SIDE // 2 :].mean(), error[1].mean()])
    objective = MotionObjective(MotionSettings(decode=decode), decoder, smooth_flow)
    mora = drawn_losses(objective, denoiser, masked=True)["mora"]
    torch.testing.assert_close(mora, expected)


def test_each_sample_sees_a_window_of_its_own_clip_and_all_are_drawn_alike(toy_denoiser):
    denoiser, decoder = toy_denoiser().double(), Decoder()
    windows = {
        "one": take_whole_clip(3),
        "two": [DecodeWindow(range(1, 2)), DecodeWindow(range(0, 2), weight=3.0)],
    }
    objective = MotionObjective(MotionSettings(), decoder, smooth_flow, windows)
    generator = torch.Generator().manual_seed(0)
    drawn = [objective._draw_windows(["two", "one"], 3, generator) for _ in range(50)]
    assert all(chosen == [DecodeWindow(range(3))] for _, chosen in drawn)
    assert 15 < sum(chosen == windows["two"][:1] for chosen, _ in drawn) < 35
    drawn_losses(objective, denoiser)
    assert [latents.shape[2] for latents in decoder.decoded] == [3, 2]


def test_the_loss_of_several_windows_is_their_mean(toy_denoiser):
    denoiser = toy_denoiser().double()
    parts = [DecodeWindow(range(0, 2)), DecodeWindow(range(0, 3))]

    def measure(count, *windows):
        settings = MotionSettings(windows_per_step=count)
        by_clip = {"one": list(windows), "two": list(windows)}
        return drawn_losses(MotionObjective(settings, Decoder(), smooth_flow, by_clip), denoiser)["mora"]

    expected = (measure(1, parts[0]) + measure(1, parts[1])) / 2
    torch.testing.assert_close(measure(2, *parts), expected)
    torch.testing.assert_close(measure(9, *parts), expected)  # there are no more than two


def test_a_clip_with_fewer_windows_than_asked_for_counts_as_much_as_another(toy_denoiser):
    denoiser, parts = toy_denoiser().double(), [DecodeWindow(range(0, 2)), DecodeWindow(range(0, 3))]
    settings = MotionSettings(windows_per_step=2)
    apart = MotionObjective(settings, Decoder(), smooth_flow, {"one": parts[:1], "two": parts})
    alone = MotionObjective(settings, Decoder(), smooth_flow, {"one": parts[:1], "two": parts[:1]})
    assert drawn_losses(apart, denoiser)["mora"][0] == drawn_losses(alone, denoiser)["mora"][0]


def test_only_changes_of_the_velocity_error_cost_the_difference_loss():
    target = torch.zeros(2, 1, 3, 1, 1)
    velocity = torch.tensor([[5.0, 5.0, 5.0], [0.0, 1.0, 3.0]]).view(2, 1, 3, 1, 1)
    # The first is wrong by the same in all frames; the second changes by 1 and by 2: (1 + 4) / 2.
    assert compute_difference_loss(velocity, target).tolist() == [0.0, 2.5]
    given = torch.tensor([[True, False, False]] * 2)
    # A given latent has no error: changes by 5 and 0, and by 1 and 2.
    assert compute_difference_loss(velocity, target, given).tolist() == [12.5, 2.5]


def test_the_difference_loss_is_added_to_the_temporal_loss(toy_denoiser):
    denoiser = toy_denoiser().double()
    batch, noise = motion_batch()
    velocity = denoiser.velocity(add_noise(batch.latents, noise, SIGMA), SIGMA, batch.context).velocity
    changes = compute_difference_loss(velocity, velocity_target(batch.latents, noise))
    plain, added = (
        MotionObjective(
            MotionSettings(mora_weight=0.0, weighted_velocity=False, difference_weight=w), None, None
        )
        for w in (0.0, 3.0)
    )
    gained = drawn_losses(added, denoiser)["temporal"] - drawn_losses(plain, denoiser)["temporal"]
    torch.testing.assert_close(gained, 3 * changes)


def test_the_temporal_loss_draws_its_anchor_and_is_weighted_by_noise_level(toy_denoiser):
    denoiser = toy_denoiser().double()
    batch, noise = motion_batch()
    anchor = torch.randint(3, (BATCH,), generator=torch.Generator().manual_seed(2))
    velocity = denoiser.velocity(add_noise(batch.latents, noise, SIGMA), SIGMA, batch.context).velocity
    expected = temporal_loss(velocity, velocity_target(batch.latents, noise), anchor)
    plain, weighted = (
        MotionObjective(MotionSettings(mora_weight=0.0, weighted_velocity=by_level), Decoder(), smooth_flow)
        for by_level in (False, True)
    )
    assert torch.equal(drawn_losses(plain, denoiser)["temporal"], expected)
    torch.testing.assert_close(
        drawn_losses(weighted, denoiser)["temporal"], expected * velocity_weight(SIGMA), rtol=1e-6, atol=0
    )


def test_mora_weight_zero_needs_no_decoder_and_is_bit_equal_to_the_temporal_loss_alone(toy_denoiser):
    denoiser, decoder = toy_denoiser().double(), Decoder()
    without = MotionObjective(MotionSettings(mora_weight=0.0), None, None)
    plain = drawn_losses(without, denoiser)
    assert set(plain) == {"temporal"} and without.trainables() == {}
    both = drawn_losses(MotionObjective(MotionSettings(), decoder, smooth_flow), denoiser)
    assert torch.equal(plain["temporal"], both["temporal"]) and decoder.decoded


def test_samples_too_noisy_to_count_are_not_decoded(toy_denoiser):
    denoiser, decoder = toy_denoiser().double(), Decoder()
    objective = MotionObjective(MotionSettings(flow_weight="clean"), decoder, smooth_flow)
    everything = drawn_losses(objective, denoiser, torch.tensor([0.3, 0.8]))["mora"]
    decoder.decoded.clear()
    mora = drawn_losses(objective, denoiser, torch.tensor([0.95, 0.8]))["mora"]
    assert mora[0] == 0 and torch.equal(mora[1], everything[1])
    decoder.decoded.clear()
    assert drawn_losses(objective, denoiser, torch.tensor([0.95, 1.0]))["mora"].tolist() == [0, 0]
    assert not decoder.decoded


def test_mora_without_a_flow_net_is_refused():
    with pytest.raises(ValueError, match="weight 1.0 needs.*optical flow.*mora_weight to 0"):
        MotionObjective(MotionSettings(), Decoder(), None)


def image_batch():
    """The batch of a model that is given the first of three latents by 20 image channels."""
    batch, _ = motion_batch()
    image = torch.randn(BATCH, 20, *batch.latents.shape[2:], dtype=torch.float64)
    given = torch.tensor([[True, False, False]] * BATCH)
    return batch._replace(extra={IMAGE_CHANNELS: image}, given=given)


def test_flow_pairs_of_given_frames_stay(toy_denoiser):
    denoiser = toy_denoiser(channels=36).double()
    objective = MotionObjective(MotionSettings(), Decoder(), smooth_flow)
    batch = image_batch()
    given = drawn_losses(objective, denoiser, batch=batch)
    counted = drawn_losses(objective, denoiser, batch=batch._replace(given=None))
    assert torch.equal(given["mora"], counted["mora"])
    assert not torch.equal(given["temporal"], counted["temporal"])


def test_given_latents_count_where_asked_for(toy_denoiser):
    denoiser, batch = toy_denoiser(channels=36).double(), image_batch()
    plain, counting = (
        MotionObjective(MotionSettings(mora_weight=0.0, count_given=count), None, None)
        for count in (False, True)
    )
    nothing_given = drawn_losses(plain, denoiser, batch=batch._replace(given=None))
    assert torch.equal(drawn_losses(counting, denoiser, batch=batch)["temporal"], nothing_given["temporal"])


def test_gradients_with_image_channels_and_given_latents_equal_finite_differences(
    toy_denoiser, finite_difference
):
    denoiser = toy_denoiser(channels=36).double()
    objective = MotionObjective(MotionSettings(mora_weight=2.0), Decoder(), smooth_flow)
    lora = random_lora(denoiser.spec, std=0.1, dtype=torch.float64)
    batch = image_batch()

    def total():
        losses = drawn_losses(objective, denoiser, batch=batch)
        return sum(objective.weights[name] * value.mean() for name, value in losses.items())

    with injected(denoiser.linears(), Injection(lora)):
        total().backward()
        for parameter in lora["blocks.0.self_attn.v"].parameters():
            direction = torch.randn_like(parameter)
            slope = finite_difference(total, parameter, direction)
            assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_the_first_frame_is_given_in_its_share_of_the_samples():
    drawn = draw_first_frames((400, 48, 3, 2, 2), 0.25, torch.Generator().manual_seed(0))
    assert not drawn[:, 1:].any() and 70 < drawn[:, 0].sum() < 130
    for share in (0.0, 1.0):
        assert (draw_first_frames((50, 48, 3, 2, 2), share, torch.Generator())[:, 0] == bool(share)).all()


class Listener:
    """A denoiser that keeps what it is asked."""

    def __init__(self, denoiser):
        self.denoiser = denoiser

    def velocity(self, noisy, sigma, context, token_block=None, extra=NO_INPUTS):
        self.noisy, self.extra = noisy, extra
        self.velocities = self.denoiser.velocity(noisy, sigma, context, token_block, extra).velocity
        return Prediction(self.velocities, None)


def test_a_given_first_frame_stands_clean_among_the_others_and_is_left_out_of_the_loss(toy_denoiser):
    denoiser, decoder = Listener(toy_denoiser().double()), Decoder()
    batch, noise = motion_batch()
    settings = MotionSettings(first_frame_share=1.0, debias=False, weighted_velocity=False)
    losses = drawn_losses(MotionObjective(settings, decoder, smooth_flow), denoiser)
    assert torch.equal(denoiser.noisy[:, :, 0], batch.latents[:, :, 0])
    assert torch.equal(denoiser.noisy[:, :, 1:], add_noise(batch.latents, noise, SIGMA)[:, :, 1:])
    mask = denoiser.extra[DENOISE_MASK]
    assert mask.shape == (BATCH, 1, 3, 2, 2) and not mask[:, :, 0].any() and mask[:, :, 1:].all()
    error = (denoiser.velocities - velocity_target(batch.latents, noise))[:, :, 1:].square()
    torch.testing.assert_close(losses["temporal"], error.mean((1, 2, 3, 4)))
    shown = torch.cat(decoder.decoded)
    assert torch.equal(shown[:, :, 0], batch.latents[:, :, 0]) and not shown[:, :, 1].eq(0).any()


def test_gradients_with_a_given_first_frame_equal_finite_differences(toy_denoiser, finite_difference):
    denoiser = toy_denoiser().double()
    settings = MotionSettings(mora_weight=2.0, first_frame_share=0.5)
    objective = MotionObjective(settings, Decoder(), smooth_flow)
    lora = random_lora(denoiser.spec, std=0.1, dtype=torch.float64)

    def total():
        losses = drawn_losses(objective, denoiser)
        return sum(objective.weights[name] * value.mean() for name, value in losses.items())

    with injected(denoiser.linears(), Injection(lora)):
        total().backward()
        for parameter in lora["blocks.1.ffn.0"].parameters():
            direction = torch.randn_like(parameter)
            slope = finite_difference(total, parameter, direction)
            assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-9)
