"""UMT5 from one file: ComfyUI's with the tokenizer inside, fp8 too, and WAN's own names."""

import io

import pytest
import torch
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

from smra_core.standalone.checkpoint_weights import check_native
from smra_core.standalone.umt5 import (
    SentencePieceTokenizer,
    Umt5Text,
    build_empty_umt5,
    build_umt5_config,
    check_umt5,
    load_umt5,
    to_umt5_name,
)

WIDTH, HEADS, INNER, VOCABULARY, LAYERS = 16, 2, 24, 64, 2
NAMES_IN_UMT5_XXL = 242
"""2 outside the blocks and 10 in each of 24."""
CPU = torch.device("cpu")
SENTENCES = ["a sks dog is vvt walking on the moon", "a person is walking a dog", "the moon is a dog"] * 20


@pytest.fixture(scope="module")
def spiece():
    """A SentencePiece model with UMT5's marks: 0 pads, 1 ends."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=VOCABULARY, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=INNER, num_layers=LAYERS)
    model = UMT5EncoderModel(UMT5Config(**sizes, num_heads=HEADS, feed_forward_proj="gated-gelu")).eval()
    for weight in model.parameters():
        weight.data.normal_(0, 0.5)
    return model


def weights_of(encoder):
    return {n: v.clone() for n, v in encoder.state_dict().items() if n != "encoder.embed_tokens.weight"}


def with_tokenizer(weights, spiece):
    return weights | {"spiece_model": torch.frombuffer(bytearray(spiece), dtype=torch.uint8)}


def authors_names(weights):
    """Back to the names of models_t5_umt5-xxl-enc-bf16.pth."""
    tops = {"shared.weight": "token_embedding.weight", "encoder.final_layer_norm.weight": "norm.weight"}
    paths = {
        "layer.0.layer_norm": "norm1",
        "layer.1.layer_norm": "norm2",
        "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
        "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
        "layer.1.DenseReluDense.wi_1": "ffn.fc1",
        "layer.1.DenseReluDense.wo": "ffn.fc2",
    } | {f"layer.0.SelfAttention.{role}": f"attn.{role}" for role in "qkvo"}
    named = {}
    for name, value in weights.items():
        if name in tops:
            named[tops[name]] = value
        else:
            _, _, block, path = name.removesuffix(".weight").split(".", 3)
            named[f"blocks.{block}.{paths[path]}.weight"] = value
    return named


def test_comfyuis_file_is_the_encoder_and_the_tokenizer(tmp_path, encoder, spiece):
    save_file(with_tokenizer(weights_of(encoder), spiece), tmp_path / "umt5.safetensors")
    text = load_umt5(tmp_path / "umt5.safetensors", torch.float32, CPU)
    expected = Umt5Text(encoder, SentencePieceTokenizer(spiece)).encode(["a sks dog", "moon"])
    assert expected.std() > 0.01
    assert torch.equal(text.encode(["a sks dog", "moon"]), expected)


def test_the_authors_own_file_is_the_same_encoder(tmp_path, encoder, spiece):
    weights = authors_names(weights_of(encoder))
    assert "blocks.0.ffn.gate.0.weight" in weights and len(weights) == 2 + 10 * LAYERS
    torch.save(weights, tmp_path / "models_t5.pth")
    (tmp_path / "google" / "umt5-xxl").mkdir(parents=True)
    (tmp_path / "google" / "umt5-xxl" / "spiece.model").write_bytes(spiece)
    loaded = load_umt5(tmp_path / "models_t5.pth", torch.float32, CPU).encoder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("names", [lambda w: w, authors_names], ids=["comfyui", "authors"])
def test_scaled_fp8_is_brought_back(tmp_path, encoder, spiece, names):
    stored, meant = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, {}
    for name, value in weights_of(encoder).items():
        meant[name] = value
        if value.ndim == 2 and "relative" not in name and name != "shared.weight":
            scale = value.abs().max() / 448
            meant[name] = (value / scale).to(torch.float8_e4m3fn).float() * scale
            named = next(iter(names({name: (value / scale).to(torch.float8_e4m3fn)}).items()))
            stored |= {named[0]: named[1], named[0].removesuffix("weight") + "scale_weight": scale}
        else:
            stored |= names({name: value})
    save_file(with_tokenizer(stored, spiece), tmp_path / "umt5_scaled.safetensors")
    loaded = load_umt5(tmp_path / "umt5_scaled.safetensors", torch.float32, CPU).encoder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in meant.items())


def test_the_widest_layer_stays_in_float32_beside_float16(tmp_path, encoder, spiece):
    save_file(with_tokenizer(weights_of(encoder), spiece), tmp_path / "umt5.safetensors")
    block = load_umt5(tmp_path / "umt5.safetensors", torch.float16, CPU).encoder.encoder.block[0]
    assert block.layer[1].DenseReluDense.wo.weight.dtype == torch.float32
    assert block.layer[1].DenseReluDense.wi_0.weight.dtype == torch.float16


def test_the_full_list_of_umt5_xxl_fits():
    width, vocabulary, heads, inner = 4096, 256384, 64, 10240
    shapes = {"shared.weight": (vocabulary, width), "encoder.final_layer_norm.weight": (width,)}
    for block in range(24):
        layer = f"encoder.block.{block}.layer"
        for role in "qkvo":
            shapes[f"{layer}.0.SelfAttention.{role}.weight"] = (width, width)
        shapes[f"{layer}.0.SelfAttention.relative_attention_bias.weight"] = (32, heads)
        for part, shape in (("wi_0", (inner, width)), ("wi_1", (inner, width)), ("wo", (width, inner))):
            shapes[f"{layer}.1.DenseReluDense.{part}.weight"] = shape
        shapes |= {f"{layer}.{i}.layer_norm.weight": (width,) for i in (0, 1)}
    assert len(shapes) == NAMES_IN_UMT5_XXL
    check_umt5(shapes | {"spiece_model": (4_548_313,)}, "file")
    model = build_empty_umt5(build_umt5_config(shapes, "file"))
    assert model.config.d_kv == 64 and model.config.is_gated_act
    assert model.config.dense_act_fn == "gelu_new"
    check_native(model, lambda name: name.replace("encoder.embed_tokens", "shared"), shapes, "file")


def tokenizer_of_transformers(spiece):
    """The pipeline that transformers makes of a T5 vocabulary, without its reader, which wants protobuf."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    processor = SentencePieceTokenizer(spiece).processor
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(len(processor))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def test_text_becomes_the_ids_that_transformers_gives(spiece):
    theirs = tokenizer_of_transformers(spiece)
    texts = ["a sks dog is vvt walking", "the moon", "", "a dog " * 30]
    given = dict(padding="max_length", max_length=12, truncation=True, return_attention_mask=True)
    expected = theirs([text.strip() for text in texts], return_tensors="pt", **given)
    ours = SentencePieceTokenizer(spiece)(texts, return_tensors="pt", **given)
    assert torch.equal(ours.input_ids, expected.input_ids)
    assert torch.equal(ours.attention_mask, expected.attention_mask)
    assert ours.input_ids[2].tolist() == [1] + [0] * 11 and ours.input_ids[3, -1] == 1


def refused(tmp_path, weights, message):
    save_file(weights, tmp_path / "umt5.safetensors")
    with pytest.raises(ValueError, match=message):
        load_umt5(tmp_path / "umt5.safetensors", torch.float32, CPU)


def test_a_file_without_a_tokenizer_says_where_one_belongs(tmp_path, encoder):
    refused(tmp_path, weights_of(encoder), "holds no tokenizer, and there is none in .*umt5_xxl_fp16")


def test_a_tokenizer_that_is_none_is_refused(tmp_path, encoder):
    refused(tmp_path, with_tokenizer(weights_of(encoder), b"nonsense"), "is not a SentencePiece model")


def test_a_weight_too_few_is_named(tmp_path, encoder, spiece):
    weights = with_tokenizer(weights_of(encoder), spiece)
    del weights["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    refused(tmp_path, weights, r"1 weights are missing \(encoder.block.1.layer.1.DenseReluDense.wo.weight\)")


def test_t5_is_refused_by_its_name(tmp_path, encoder, spiece):
    weights = with_tokenizer(weights_of(encoder), spiece)
    del weights["encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"]
    refused(tmp_path, weights, "is not UMT5: it looks like T5 of width 16, not UMT5 of width 4096")


@pytest.mark.parametrize("shape", [(1 << 40, 0), (0, 16), (16,)])
def test_absurd_sizes_are_refused_before_anything_is_built(encoder, shape):
    shapes = {name: tuple(value.shape) for name, value in weights_of(encoder).items()}
    with pytest.raises(ValueError, match="vocab_size is|is not UMT5"):
        check_umt5(shapes | {"shared.weight": shape}, "file")


def test_names_of_other_modules_stay():
    assert to_umt5_name("blocks.0.self_attn.q.weight") == "blocks.0.self_attn.q.weight"
