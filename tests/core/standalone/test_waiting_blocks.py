"""Training on a DiT whose blocks wait in host memory, or stay in fp8, beside one that is wholly loaded."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file

from smra_core.lora.adapter import Injection, init_lora, injected
from smra_core.lora.plan import ALL_LAYERS
from smra_core.lora.schedule import ScheduledLora, Strengths
from smra_core.standalone import backend as standalone_backend
from smra_core.standalone.backend import StandaloneBackend
from smra_core.standalone.diffusers_wan import DiffusersDenoiser
from smra_core.standalone.generate import Variant, generate
from smra_core.standalone.model_files import WanFiles
from smra_core.standalone.waiting_blocks import Placement, choose_placement, count_kept_bytes
from smra_core.storage.tensor_cache import TensorCache
from smra_core.training.memory import (
    GIB,
    count_block_bytes,
    count_model_bytes,
    count_other_bytes,
    estimate_subject_memory,
)
from smra_core.training.memory_advice import tell_subject_memory
from smra_core.training.sura import SubjectObjective, SubjectSample, SubjectSettings
from smra_core.training.train_settings import TrainSettings
from smra_core.training.trainer import train_lora
from smra_core.wan.block_stream import Copies
from smra_core.wan.module_names import to_native_dit_state, to_native_vae_state
from smra_core.wan.sampler import SamplingSettings
from smra_core.wan.spec import WAN_14B
from smra_core.wan.stored_form import make_rotation

BLOCKS, RANK, TEXT, FFN = 5, 2, 8, 512
SIZES = dict(
    num_attention_heads=1, attention_head_dim=128, ffn_dim=FFN, num_layers=BLOCKS, text_dim=TEXT, freq_dim=8
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A function that gives a native model, in 16 bit or with linears of scaled fp8."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    plain = to_native_dit_state(WanTransformer3DModel(**SIZES).state_dict())
    stored = dict(plain)
    for name, value in plain.items():
        if name.startswith("blocks.") and value.ndim == 2 and name.endswith(".weight"):
            scale = value.abs().amax(1) / 448 if "ffn.0" in name else value.abs().max() / 448
            stored[name] = (value / (scale[:, None] if scale.ndim else scale)).to(torch.float8_e4m3fn)
            stored[name.removesuffix("weight") + "scale_weight"] = scale
    save_file(plain, folder / "plain.safetensors")
    save_file(stored, folder / "fp8.safetensors")
    save_file(as_rotated_int8(plain), folder / "int8.safetensors")
    save_file(to_native_vae_state(AutoencoderKLWan(base_dim=4, z_dim=16).state_dict()), folder / "vae.st")
    return lambda kind: WanFiles(folder / f"{kind}.safetensors", folder / "vae.st", None)


def as_rotated_int8(state):
    """Linears in INT8 by output, rotated in groups of 16."""
    stored, mark = dict(state), b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 16}'
    for name, value in state.items():
        if name.startswith("blocks.") and value.ndim == 2 and name.endswith(".weight"):
            rotated = (value.unflatten(1, (-1, 16)) @ make_rotation(16, CPU)).flatten(1)
            scale = rotated.abs().amax(1, keepdim=True) / 127
            stored[name], module = (rotated / scale).round().to(torch.int8), name.removesuffix("weight")
            stored[f"{module}weight_scale"] = scale
            stored[f"{module}comfy_quant"] = torch.frombuffer(bytearray(mark), dtype=torch.uint8)
    return stored


def inputs():
    torch.manual_seed(1)
    return torch.randn(1, 16, 2, 4, 6), torch.tensor([0.4]), torch.randn(1, 3, TEXT)


def make_lora(denoiser):
    lora = init_lora(denoiser.spec, ALL_LAYERS, RANK, torch.Generator().manual_seed(0))
    for pair in lora.values():
        torch.nn.init.normal_(pair.b, std=0.1)
    return lora


def differentiate(denoiser):
    """Velocity, tokens, and the gradients of all LoRA factors."""
    torch.manual_seed(2)
    lora = make_lora(denoiser)
    with injected(denoiser.linears(), Injection(lora)):
        velocity, tokens = denoiser.velocity(*inputs(), token_block=1)
        (velocity.square().mean() + tokens.float().square().mean()).backward()
    return [velocity.detach(), tokens.detach()] + [
        each.grad for pair in lora.values() for each in pair.parameters()
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "fp8", "int8"])
@pytest.mark.parametrize("keeps_form, resident", [(True, None), (True, 0), (True, 3), (False, 2)])
def test_losses_and_gradients_are_bit_equal_to_those_of_the_loaded_model(
    files, dtype, kind, keeps_form, resident
):
    expected = differentiate(files(kind).load_denoiser(dtype, CPU, True))
    denoiser = files(kind).load_denoiser(dtype, CPU, True, Placement(keeps_form, resident))
    got = differentiate(denoiser)
    denoiser.close()
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in got)


def train(denoiser):
    """A LoRA after a few steps of the training loop itself."""
    settings = SubjectSettings(width=64, height=64, rank=RANK, sura_weight=0.0, plan=ALL_LAYERS)
    generator = torch.Generator().manual_seed(5)
    latents, context = (torch.randn(shape, generator=generator) for shape in ((16, 1, 8, 8), (3, TEXT)))
    sample = SubjectSample("a", latents, context, torch.ones(1, 1, 8, 8), torch.zeros(0, 1))
    lora = make_lora(denoiser)
    objective = SubjectObjective(settings, denoiser.spec.dim, 1, 0)
    train_lora(denoiser, lora, objective, [sample], TrainSettings(steps=3, learning_rate=1e-2))
    return [each.detach() for pair in lora.values() for each in pair.parameters()]


def test_the_trained_lora_is_bit_equal(files):
    torch.manual_seed(2)
    expected = train(files("fp8").load_denoiser(torch.bfloat16, CPU, True))
    torch.manual_seed(2)
    got = train(files("fp8").load_denoiser(torch.bfloat16, CPU, True, Placement(True, 2)))
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def test_fp8_takes_a_byte_a_value_and_a_waiting_block_none(files):
    denoiser = files("fp8").load_denoiser(torch.float32, CPU, True, Placement(True, 3))
    blocks = [{p.dtype for n, p in block.named_parameters() if p.ndim == 2} for block in denoiser.dit.blocks]
    assert blocks.count(set()) == 2 and blocks.count({torch.float8_e4m3fn}) == 3
    assert [files(kind).share_of_8_bits for kind in ("plain", "fp8", "int8")] == [0, 1, 1]


def test_each_waiting_block_is_copied_once_forward_and_once_back_in_a_step(files, monkeypatch):
    copied = []

    def start(self, sources, targets):
        copied.append(sum(source.nbytes for source in sources))
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)

    monkeypatch.setattr(Copies, "start", start)
    denoiser = files("fp8").load_denoiser(torch.float32, CPU, True, Placement(True, 0))
    differentiate(denoiser)
    assert len(copied) == BLOCKS + BLOCKS - 2  # the last two are still there when the backward pass begins
    copied.clear()
    differentiate(denoiser)
    assert len(copied) == 2 * (BLOCKS - 2)
    assert set(copied) == {8 * 128 * 128 + 2 * 128 * FFN}


def test_a_forward_without_gradients_uses_the_waiting_weights_too(files):
    expected = files("fp8").load_denoiser(torch.float32, CPU).velocity(*inputs()).velocity
    denoiser = files("fp8").load_denoiser(torch.float32, CPU, True, Placement(True, 1))
    with torch.no_grad():
        assert torch.equal(denoiser.velocity(*inputs()).velocity, expected)


def test_an_error_in_the_middle_leaves_a_model_that_goes_on(files):
    expected = differentiate(files("plain").load_denoiser(torch.float32, CPU, True))
    denoiser = files("plain").load_denoiser(torch.float32, CPU, True, Placement(resident=1))
    lora, seen = make_lora(denoiser), []
    names = list(denoiser.linears())

    def fail(module, args, output):
        seen.append(1)
        if len(seen) == 2:  # while the block is recomputed
            raise KeyboardInterrupt

    handle = denoiser.dit.blocks[2].attn1.norm_q.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt), injected(denoiser.linears(), Injection(lora)):
        denoiser.velocity(*inputs()).velocity.sum().backward()
    handle.remove()
    assert list(denoiser.linears()) == names
    assert all(torch.equal(a, b) for a, b in zip(differentiate(denoiser), expected, strict=True))


@pytest.mark.parametrize(
    "free, share, expected",
    [
        (40, 1, Placement()),
        (20, 1, Placement(keeps_form=True)),
        (20, 0, Placement(resident=27)),
        (20, 0.5, Placement(True, 37)),
        (6, 1, Placement(True, 13)),
        (0.5, 1, Placement(True, 0)),
        (-3, 0, Placement(False, 0)),
    ],
)
def test_the_fastest_placement_that_fits_is_chosen(free, share, expected):
    placement = choose_placement(WAN_14B, free * GIB, 2, share)
    assert placement == expected
    if placement.resident:
        rooms = placement.resident + 2
        assert rooms * count_block_bytes(WAN_14B, 2 - share) + count_other_bytes(WAN_14B) <= free * GIB


def test_a_file_of_8_bits_is_told_as_it_is_kept(files, tmp_path):
    """By its header alone, in half precision: each linear of a block takes a byte a value."""
    for kind in ("plain", "fp8", "int8"):
        backend = StandaloneBackend(files(kind), tmp_path, TensorCache(tmp_path), CPU, torch.bfloat16)
        told, whole = backend.weights, count_model_bytes(backend.spec)
        if kind == "plain":
            assert (told.model_bytes, told.restored_bytes) == (whole, None)
            continue
        blocks = BLOCKS * count_block_bytes(backend.spec)
        assert told.can_wait and told.restored_bytes == whole
        assert told.model_bytes == pytest.approx(whole - blocks / 2, abs=BLOCKS)


def test_a_run_is_refused_by_the_weights_as_they_are_kept(files, tmp_path, monkeypatch):
    """A fake card that holds the account of 8 bits, and not that of 16."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, memory))
    settings, card = SubjectSettings(width=64, height=64), torch.device("cuda")
    backends = [
        StandaloneBackend(files(kind), tmp_path, TensorCache(tmp_path), card, torch.bfloat16)
        for kind in ("fp8", "plain")
    ]
    large = [count_kept_bytes(WAN_14B, 2, each.files.share_of_8_bits) for each in backends]
    least = [estimate_subject_memory(WAN_14B, settings, each.take_least()).total for each in large]
    memory = least[0] + 1
    assert memory * 1.1 < least[1]
    tell_subject_memory(settings, 1, WAN_14B, card, large[0])
    with pytest.raises(ValueError, match="does not fit"):
        tell_subject_memory(settings, 1, WAN_14B, card, large[1])


def test_a_backend_lets_blocks_wait_that_do_not_fit(files, tmp_path):
    backend = StandaloneBackend(files("fp8"), tmp_path, TensorCache(tmp_path), CPU, torch.bfloat16)
    assert backend.choose_placement(8 * GIB) == Placement()
    assert backend.choose_placement(-GIB) == Placement(True, 0)


def test_the_backend_closes_what_it_loads_and_loads_once(files, tmp_path, monkeypatch):
    backend = StandaloneBackend(files("plain"), tmp_path, TensorCache(tmp_path), CPU, torch.float32)
    closed = []
    monkeypatch.setattr(DiffusersDenoiser, "close", lambda self: closed.append(1))
    with pytest.raises(KeyboardInterrupt), backend.denoiser_for_training():
        raise KeyboardInterrupt
    assert closed == [1]
    loads = []

    def fail(*args):
        loads.append(1)
        raise ValueError("broken file")

    monkeypatch.setattr(WanFiles, "load_denoiser", fail)
    with pytest.raises(ValueError, match="broken file"), backend.denoiser_for_training():
        pass
    assert loads == [1] and closed == [1]


@pytest.mark.parametrize("kind", ["plain", "fp8"])
def test_a_sampled_video_is_bit_equal_where_blocks_wait(files, tmp_path, monkeypatch, kind):
    """On a card with room for a block or none; the LoRA's strength switches on the way."""
    backend = StandaloneBackend(files(kind), tmp_path, TensorCache(tmp_path), CPU, torch.float32)
    monkeypatch.setattr(StandaloneBackend, "encode_captions", encode_nothing)
    settings = SamplingSettings(steps=2, width=64, height=64, frames=5)
    lora = make_lora(files(kind).load_denoiser(torch.float32, CPU))
    variants = [Variant("video", "", (ScheduledLora(lora, Strengths(0.4, 0.8)),))]
    expected = generate(backend, ["a"], variants, settings)["video"]
    load, closed, close = WanFiles.load_denoiser, [], DiffusersDenoiser.close
    monkeypatch.setattr(DiffusersDenoiser, "close", lambda self: closed.append(1) or close(self))
    for placement in (Placement(True, 1), Placement(False, 0)):
        place = lambda files, *given, it=placement: load(files, *given[:-1], it)  # noqa: E731
        monkeypatch.setattr(WanFiles, "load_denoiser", place)
        assert torch.equal(generate(backend, ["a"], variants, settings)["video"], expected)
    assert closed == [1, 1]


def encode_nothing(self, captions):
    return {caption: torch.zeros(3, TEXT) for caption in captions}


def test_a_card_that_is_full_lets_blocks_wait_while_sampling(files, tmp_path, monkeypatch):
    """A fake card: what is left for weights is told beside the activations of an evaluation."""
    card = torch.device("cuda")
    backend = StandaloneBackend(files("plain"), tmp_path, TensorCache(tmp_path), card, torch.bfloat16)
    asked, taken = [], []
    monkeypatch.setattr(
        standalone_backend, "measure_spare_memory", lambda device, needed: asked.append(needed) or -1.0
    )
    monkeypatch.setattr(
        WanFiles, "load_denoiser", lambda self, *given: taken.append(given) or SimpleNamespace(close=list)
    )
    with backend.denoiser_for_sampling(SamplingSettings(width=64, height=64, frames=5), 2) as denoiser:
        denoiser()
    assert taken == [(torch.bfloat16, card, False, Placement(resident=0))]
    # 32 tokens of 128 values; the net is 4 times as wide.
    assert asked == [round(2 * 32 * 128 * 2 * (7.1 + 1.55 * 4))]
