import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel
from transformers.tokenization_utils_base import BatchEncoding

from smra_core.lora.adapter import Injection, init_lora, injected
from smra_core.lora.plan import ALL_LAYERS, MOTION, SUBJECT
from smra_core.standalone.diffusers_wan import DiffusersCodec, DiffusersDenoiser, make_timesteps
from smra_core.standalone.umt5 import Umt5Text
from smra_core.wan.condition import DENOISE_MASK
from smra_core.wan.spec import LATENTS_21, WAN_1_3B, token_grid

HEAD, BLOCKS, TEXT = 12, 2, 8
F, H, W = 3, 4, 6


def small_dit():
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=HEAD,
        ffn_dim=16,
        num_layers=BLOCKS,
        text_dim=TEXT,
        freq_dim=8,
    )


def inputs(dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(1, 16, F, H, W, dtype=dtype), torch.tensor([0.4]), torch.randn(1, 3, TEXT, dtype=dtype)


def test_the_model_is_told_a_thousand_times_sigma():
    dit = small_dit()
    noisy, sigma, context = inputs()
    expected = dit.eval()(noisy, torch.tensor([400.0]), context, return_dict=False)[0]
    torch.testing.assert_close(DiffusersDenoiser(dit).velocity(noisy, sigma, context).velocity, expected)


@pytest.mark.parametrize("token_block", [0, BLOCKS - 1])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_collected_tokens_are_what_the_block_gave(token_block, checkpoint):
    dit = small_dit()
    given = []
    dit.blocks[token_block].register_forward_hook(lambda module, args, output: given.append(output))
    tokens = DiffusersDenoiser(dit, checkpoint).velocity(*inputs(), token_block=token_block).tokens
    torch.testing.assert_close(tokens, given[0])


def test_a_block_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no block 2 to take tokens from; this model has blocks 0 to 1"):
        DiffusersDenoiser(small_dit()).velocity(*inputs(), token_block=2)


@pytest.mark.parametrize("cell", [(0, 0, 0), (1, 3, 1), (2, 2, 5)])
def test_tokens_come_in_t_y_x_order(cell):
    dit = small_dit()
    for block in dit.blocks:  # without mixing, a token depends on its own cells alone
        for part in (block.attn1.to_out[0], block.attn2.to_out[0]):
            torch.nn.init.zeros_(part.weight)
    denoiser = DiffusersDenoiser(dit)
    noisy, sigma, context = inputs()
    before = denoiser.velocity(noisy, sigma, context, token_block=0).tokens
    t, y, x = cell
    noisy[:, :, t, y, x] += 1
    changed = (denoiser.velocity(noisy, sigma, context, token_block=0).tokens - before).abs().sum(-1)[0]
    _, rows, columns = token_grid(noisy.shape)
    assert changed.nonzero().flatten().tolist() == [(t * rows + y // 2) * columns + x // 2]


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpoint in (False, True):
        denoiser = DiffusersDenoiser(small_dit(), checkpoint)
        lora = init_lora(denoiser.spec, ALL_LAYERS, 2, torch.Generator().manual_seed(0))
        with injected(denoiser.linears(), Injection(lora)):
            velocity, tokens = denoiser.velocity(*inputs(), token_block=0)
            (velocity.square().sum() + tokens.square().sum()).backward()
        gradients.append([pair.b.grad for pair in lora.values()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
        assert plain.abs().sum() > 0


def test_lora_gradients_equal_finite_differences(finite_difference):
    denoiser = DiffusersDenoiser(small_dit().double(), checkpoint=True)
    lora = init_lora(denoiser.spec, SUBJECT, 2, torch.Generator().manual_seed(0))
    for pair in lora.values():
        pair.double().b.data.normal_(std=0.1)
    with injected(denoiser.linears(), Injection(lora)):
        total = lambda: denoiser.velocity(*inputs(torch.float64), token_block=0).tokens.square().mean()  # noqa: E731
        total().backward()
        parameter = lora["blocks.0.self_attn.q"].a
        direction = torch.randn_like(parameter)
        slope = finite_difference(total, parameter, direction, step=3e-2)
    # diffusers computes norms and modulations in float32 whatever it is given: hence the wide step.
    assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=2e-2, abs=1e-5)


def test_the_sparse_plans_hit_the_papers_modules_of_the_real_model():
    with torch.device("meta"):
        dit = WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30)
    denoiser = DiffusersDenoiser(dit)
    assert denoiser.spec is WAN_1_3B
    names = denoiser.linears()
    assert len(SUBJECT.select(names)) == 150 and len(MOTION.select(names)) == 180
    assert sorted(names) == sorted(WAN_1_3B.linear_names())
    shapes = {name: (module.out_features, module.in_features) for name, module in names.items()}
    assert shapes == {name: WAN_1_3B.linear_shape(name) for name in names}


def test_latents_are_normalized_by_wans_statistics():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4, z_dim=16)
    codec, pixels = DiffusersCodec(vae), torch.rand(1, 3, 5, 16, 16) * 2 - 1
    raw = vae.encode(pixels).latent_dist.mean
    latents = codec.encode(pixels)
    assert latents.shape == (1, 16, 2, 2, 2)
    for channel in (0, 15):
        expected = (raw[:, channel] - LATENTS_21.mean[channel]) / LATENTS_21.std[channel]
        torch.testing.assert_close(latents[:, channel], expected)
    torch.testing.assert_close(codec.decode(latents), vae.decode(raw).sample, atol=1e-5, rtol=1e-4)


class WordTokenizer:
    """One id a word, then the end mark 1; padded with 0."""

    def __call__(self, texts, padding, max_length, truncation, return_attention_mask, return_tensors):
        rows = [[2 + len(word) for word in text.split()][: max_length - 1] + [1] for text in texts]
        ids = torch.tensor([row + [0] * (max_length - len(row)) for row in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": (ids > 0).long()})


def test_text_context_is_zero_after_the_last_token():
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    text = Umt5Text(UMT5EncoderModel(config), WordTokenizer())
    context = text.encode(["a  dog\nruns", "a"])
    assert context.shape == (2, 512, 8)
    assert (context[0, :4].abs().sum(-1) > 0).all() and not context[0, 4:].any()
    assert (context[1, :2].abs().sum(-1) > 0).all() and not context[1, 2:].any()


def first_latent_given(share_of_noise=0.0):
    """A mask of the latents of `inputs`, which is 0 in the first of them."""
    mask = torch.ones(1, 1, *inputs()[0].shape[2:])
    mask[:, :, 0] = share_of_noise
    return {DENOISE_MASK: mask}


def test_each_token_of_a_given_latent_has_timestep_zero():
    noisy, sigma, _ = inputs()
    _, rows, columns = token_grid(noisy.shape)
    timesteps = make_timesteps(sigma, first_latent_given())
    assert timesteps.shape == (1, noisy.shape[2] * rows * columns)
    assert not timesteps[:, : rows * columns].any()
    assert (timesteps[:, rows * columns :] == 1000 * sigma).all()


def test_a_mask_without_a_given_latent_is_as_none_and_one_with_it_is_not():
    denoiser = DiffusersDenoiser(small_dit())
    plain = denoiser.velocity(*inputs()).velocity
    full = denoiser.velocity(*inputs(), extra=first_latent_given(1.0)).velocity
    torch.testing.assert_close(full, plain)
    given = denoiser.velocity(*inputs(), extra=first_latent_given()).velocity
    assert (given - plain)[:, :, 1:].abs().max() > 1e-3
