import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from smra_core.decoding.tiny_decoder import TinyDecoder, load_tiny_decoder, with_matching_scaling
from smra_core.wan.spec import LATENTS_21, LATENTS_22

WIDTHS = (8, 6, 4, 4)


def tiny(half_size=True, space=LATENTS_21):
    torch.manual_seed(1)
    return TinyDecoder(WIDTHS, half_size, space).double()


def latents(space=LATENTS_21):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, space.channels, 3, 2, 4, dtype=torch.float64, generator=generator)


def plain_decode(decoder, z):
    """The same net written frame by frame with torch's own layers: memory is the frame before, as it is."""
    weights = decoder.state_dict()

    def conv(x, name):
        weight = weights[f"decoder.{name}.weight"]
        return F.conv2d(x, weight, weights.get(f"decoder.{name}.bias"), padding=weight.shape[-1] // 2)

    def remember(x, memory, name):
        inner = conv(torch.cat([x, memory], 1), f"{name}.conv.0").relu()
        return (conv(conv(inner, f"{name}.conv.2").relu(), f"{name}.conv.4") + x).relu()

    frames = [conv(torch.tanh(x / 3) * 3, 1).relu() for x in z.unbind(2)]
    for stage, times in enumerate((1, 2, 2)):
        start = 3 + 6 * stage
        for block in range(start, start + 3):
            memory = [torch.zeros_like(frames[0]), *frames[:-1]]
            frames = [remember(x, m, block) for x, m in zip(frames, memory, strict=True)]
        if stage < 2 or not decoder.half_size:
            frames = [larger(x) for x in frames]
        grown = [conv(x, f"{start + 4}.conv").chunk(times, 1) for x in frames]
        frames = [conv(x, start + 5) for parts in grown for x in parts]
    frames = [conv(x.relu(), 22) for x in frames][3:]
    side = round((frames[0].shape[1] / 3) ** 0.5)
    return torch.stack([2 * F.pixel_shuffle(x, side) - 1 for x in frames], 2)


def larger(x):
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.mark.parametrize("space", [LATENTS_21, LATENTS_22], ids=lambda space: space.name)
@pytest.mark.parametrize("half_size", [True, False])
def test_pixels_and_gradient_are_those_of_the_net_written_plainly(half_size, space):
    decoder, z = tiny(half_size, space), latents(space).requires_grad_()
    pixels, expected = decoder.step(z)[0], plain_decode(decoder, z)
    side = space.stride // 2 if half_size else space.stride
    assert pixels.shape == (2, 3, 9, 2 * side, 4 * side)
    torch.testing.assert_close(pixels, expected)
    pull = torch.randn_like(pixels)
    (gradient,) = torch.autograd.grad(pixels, z, pull)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, z, pull)[0])


def test_one_latent_at_a_time_gives_the_same_and_its_memory_carries_the_gradient():
    decoder, z = tiny(), latents().requires_grad_()
    whole, _ = decoder.step(z)
    past, parts = None, []
    for latent in z.split(1, 2):
        part, past = decoder.step(latent, past)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    pull = torch.randn_like(parts[2])
    (gradient,) = torch.autograd.grad(parts[2], z, pull)
    assert (gradient[:, :, 0] != 0).any()  # a detached memory would leave it zero
    torch.testing.assert_close(gradient, torch.autograd.grad(whole[:, :, 5:], z, pull)[0])


class Full:
    """A full decoder that says what the tiny one says under a scaling, at twice the size, plus an error."""

    def __init__(self, scaling, error=0.0):
        self.tiny, self.error = tiny(), error
        self.tiny.scaling = scaling

    def step(self, z, past):
        pixels, after = self.tiny.step(z, past)
        return larger(pixels + self.error * pixels.std() * torch.randn_like(pixels)), after


@pytest.mark.parametrize("scaling", ["normalized", "denormalized"])
def test_the_scaling_is_found_from_what_the_full_decoder_says(scaling):
    found = with_matching_scaling(tiny(), Full(scaling, error=0.3), 3 * latents()[0])
    assert found.scaling == scaling


def test_a_tiny_decoder_of_other_latents_is_refused():
    with pytest.raises(ValueError, match="not the full decoder's.*lighttaew2_1"):
        with_matching_scaling(tiny(), Full("normalized", error=2.0), 3 * latents()[0])


@pytest.mark.parametrize("space", [LATENTS_21, LATENTS_22], ids=lambda space: space.name)
def test_files_are_read_and_their_encoder_is_passed_over(tmp_path, space):
    file, z = tmp_path / "tiny.safetensors", latents(space)
    written = tiny(space=space)
    save_file({**written.state_dict(), "encoder.0.weight": torch.zeros(4, 3, 3, 3)}, file)
    decoder = load_tiny_decoder(file, space).double()
    torch.testing.assert_close(decoder.step(z)[0], written.step(z)[0], rtol=1e-4, atol=1e-5)
    (other,) = {LATENTS_21, LATENTS_22} - {space}
    with pytest.raises(ValueError, match=f"as {space.name} has them; .* Choose {other.tiny_files[0]}"):
        load_tiny_decoder(file, other)


@pytest.mark.parametrize("changes, message", [
    ({"decoder.1.weight": torch.zeros(8, 24, 3, 3)}, "24 channels to 3; WAN 2.1 has 16 and 3"),
    ({"decoder.1.conv.1.weight": torch.zeros(8)}, "larger kind"),
    ({"decoder.4.conv.2.weight": None}, "1 weights are missing .decoder.4.conv.2.weight"),
    ({"decoder.22.weight": None}, "not a tiny video decoder"),
    ({"decoder.14.weight": None}, "3 of 4 widths"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, changes, message):
    tensors = {k: v for k, v in {**tiny().state_dict(), **changes}.items() if v is not None}
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=message):
        load_tiny_decoder(tmp_path / "other.safetensors", LATENTS_21)
