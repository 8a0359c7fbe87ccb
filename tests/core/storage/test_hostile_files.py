"""Files by strangers: whatever is in them, a reader answers with a ValueError or with what it read.

Nothing in them is executed, and no reader takes memory that the file does not have.
"""

import json
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import smra_core.storage.weight_file as weight_file
from smra_core.encoders.dinov2 import load_dinov2
from smra_core.encoders.sam import load_sam
from smra_core.encoders.sea_raft import SeaRaft, load_sea_raft, save_sea_raft
from smra_core.encoders.sea_raft_config import SEA_RAFT_MINIATURE
from smra_core.lora.reader import load_lora
from smra_core.lora.report import describe_lora
from smra_core.miniature.model_files import MINIATURE_FILES
from smra_core.standalone.checkpoint_kind import build_dit_config, build_vae_config
from smra_core.standalone.checkpoint_weights import rename_to_native
from smra_core.standalone.model_files import find_wan_files
from smra_core.standalone.native_part import DIT, VAE
from smra_core.standalone.umt5 import build_umt5_config, load_umt5, to_umt5_name
from smra_core.storage.weight_file import read_shapes, read_weight_file

ROUNDS = 120
DTYPES = ["F32", "F16", "BF16", "F64", "I64", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "X", 7]
SIDES = [0, 1, 2, 3, 16, 128, 384, 4096, 1 << 20, 1 << 40, 1 << 62, 1 << 64, -1, 1.5, "3", None]
ROUNDS_OF_ALL = 40
"""The number of damaged headers, each shown to all readers."""


def read_as_lora(path):
    describe_lora(load_lora(path))


def read_as_dit(path):
    shapes = rename_to_native(read_shapes(path), DIT.choose_names(()), path.name)
    build_dit_config(shapes, path.name)
    read_weight_file(path)


def read_as_vae(path):
    build_vae_config(rename_to_native(read_shapes(path), VAE.choose_names(()), path.name), path.name)


def read_as_text(path):
    build_umt5_config(rename_to_native(read_shapes(path), to_umt5_name, path.name), path.name)


READERS = [read_as_lora, read_as_dit, read_as_vae, read_as_text, load_sea_raft, load_dinov2, load_sam]


def answered(reader, path):
    """Run a reader: True when it refused; fails on any error but a ValueError with words in it."""
    try:
        reader(path)
    except ValueError as error:
        assert len(str(error)) > 20, f"{reader.__name__} says only {error!s}"
        assert len(str(error)) < 4000
        return True
    return False


def good_names():
    """Names that each reader looks for, so that damage is met beyond the first check."""
    pair = {
        "diffusion_model.blocks.0.ffn.0.lora_A.weight": (2, 6),
        "diffusion_model.blocks.0.ffn.0.lora_B.weight": (10, 2),
        "lora_unet_blocks_1_self_attn_q.lora_down.weight": (2, 6),
        "lora_unet_blocks_1_self_attn_q.lora_up.weight": (6, 2),
        "lora_unet_blocks_1_self_attn_q.alpha": (),
    }
    dit = {
        "patch_embedding.weight": (128, 16, 1, 2, 2),
        "head.head.weight": (64, 128),
        "blocks.0.ffn.0.weight": (16, 128),
        "text_embedding.0.weight": (128, 8),
        "time_embedding.0.weight": (128, 8),
    }
    vae = {"decoder.head.0.gamma": (4, 1, 1, 1), "conv2.weight": (16, 16, 1, 1, 1)}
    layer = "encoder.block.0.layer."
    text = {
        "shared.weight": (8, 4),
        layer + "0.SelfAttention.q.weight": (4, 4),
        layer + "0.SelfAttention.relative_attention_bias.weight": (4, 2),
        layer + "1.DenseReluDense.wi_0.weight": (4, 4),
    }
    dino = {
        "patch_embed.proj.weight": (32, 3, 14, 14),
        "pos_embed": (1, 5, 32),
        "blocks.0.mlp.fc1.weight": (8, 32),
        "blocks.0.mlp.fc2.weight": (32, 8),
    }
    return [pair, dit, vae, text, dino]


def header_of(shapes):
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    return header, end


def write(path, header, size):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(min(size, 1 << 20)))


def damaged(header, draw):
    """One entry of a header changed in one of the ways that a stranger might."""
    name = draw.choice(list(header))
    entry = dict(header[name])
    way = draw.randrange(6)
    if way == 0:
        entry["shape"] = [draw.choice(SIDES) for _ in range(draw.randrange(6))]
    elif way == 1:
        entry["dtype"] = draw.choice(DTYPES)
    elif way == 2:
        entry["data_offsets"] = [draw.choice(SIDES), draw.choice(SIDES)]
    elif way == 3:  # an empty tensor may claim any shape
        entry |= {"shape": [draw.choice([1 << 40, 3]), 0, draw.choice([1, 1 << 40])], "data_offsets": [0, 0]}
    elif way == 4:
        entry = draw.choice([None, [], "x", {}, {"shape": {}}])
    changed = header | {name: entry}
    if way == 5:
        changed[name.replace("0", draw.choice(["9" * 5000, "999", "-1", "007", ""]))] = changed.pop(name)
    return changed


def test_damaged_headers_are_answered(tmp_path):
    draw, path, refusals = random.Random(0), tmp_path / "x.safetensors", 0
    files = [header_of(shapes) for shapes in good_names()]
    for _ in range(ROUNDS_OF_ALL):
        header, size = draw.choice(files)
        write(path, damaged(header, draw), size)
        refusals += sum(answered(reader, path) for reader in READERS)
    assert refusals > 0.9 * ROUNDS_OF_ALL * len(READERS)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_flipped_and_lost_bytes_are_answered(tmp_path, ending):
    draw, path = random.Random(1), tmp_path / f"x.{ending}"
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) for name, shape in good_names()[0].items()}
    save_file(weights, path) if ending == "safetensors" else torch.save(weights, path)
    whole = path.read_bytes()
    for _ in range(ROUNDS):
        content = bytearray(whole)
        for _ in range(draw.randrange(1, 8)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        if draw.random() < 0.4:
            del content[draw.randrange(len(content)) :]
        path.write_bytes(content)
        answered(read_as_lora, path)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("ending", ["safetensors", "pth", "ckpt"])
def test_what_is_no_weight_file_is_refused(tmp_path, reader, ending):
    path = tmp_path / f"x.{ending}"
    for content in (b"", b"\xff" * 8, bytes(8), b"<html>not found</html>", b"\x02" + bytes(7) + b"{}"):
        path.write_bytes(content)
        assert answered(reader, path)


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def bombs(folder, target):
    torch.save({"a.weight": torch.ones(1), "bomb": Bomb(target)}, folder / "inside.pth")
    torch.save(Bomb(target), folder / "alone.ckpt")
    (folder / "bare.bin").write_bytes(pickle.dumps(Bomb(target)))
    (folder / "named.safetensors").write_bytes(pickle.dumps(Bomb(target)))
    with zipfile.ZipFile(folder / "hand.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": Bomb(target)}))
        archive.writestr("archive/version", "3")
    return sorted(folder.iterdir())


def read_as_umt5(path):
    load_umt5(path, torch.float32, torch.device("cpu"))


def find_with(path):
    find_wan_files(str(path), str(path), str(path))


@pytest.mark.parametrize("reader", [*READERS, read_as_umt5, find_with], ids=lambda reader: reader.__name__)
def test_no_reader_runs_what_a_pickle_asks_for(tmp_path, reader):
    target = tmp_path / "went_off"
    for path in bombs(tmp_path, target):
        assert answered(reader, path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Bomb(target)))  # the bomb is a real one
    assert target.exists()


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    path = tmp_path_factory.mktemp("crowded") / "many.safetensors"
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    write(path, {f"blocks.{i}.ffn.0.lora_A.weight": entry for i in range(100_000)}, 0)
    return path


# The rest read their files by the same two functions.
@pytest.mark.parametrize("reader", [read_as_lora, read_as_vae, load_sea_raft], ids=lambda r: r.__name__)
def test_a_hundred_thousand_names_are_refused_unread(crowded, reader, monkeypatch):
    monkeypatch.setattr(weight_file, "_without_module_prefix", None)  # what follows the count
    with pytest.raises(ValueError, match="holds 100000 tensors; no model used here has more than 20000"):
        reader(crowded)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_in_loras_and_teachers(tmp_path, value):
    lora = {name: torch.ones(shape) for name, shape in good_names()[0].items()}
    lora["diffusion_model.blocks.0.ffn.0.lora_B.weight"][3, 1] = value
    save_file(lora, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_lora(tmp_path / "lora.safetensors")
    net = SeaRaft(SEA_RAFT_MINIATURE)
    with torch.no_grad():
        net.init_conv.bias[0] = value
    save_sea_raft(net, tmp_path / "flow.safetensors", torch.float32)
    with pytest.raises(ValueError, match="NaN or infinite in init_conv.bias"):
        load_sea_raft(tmp_path / "flow.safetensors")


@pytest.mark.parametrize(
    "listing",
    [
        "{",
        "[]",
        '{"weight_map": 3}',
        '{"weight_map": {"a": "../secret.safetensors"}}',
        json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(500)}}),
        "[" * 5000,
    ],
)
def test_an_index_of_parts_that_reaches_elsewhere_is_refused(tmp_path, listing):
    (tmp_path / "x.safetensors.index.json").write_text(listing)
    assert answered(read_weight_file, tmp_path / "x.safetensors.index.json")


def test_a_tensor_of_overlapping_memory_cannot_claim_more_than_the_file_has(tmp_path):
    name = "diffusion_model.blocks.0.ffn.0.lora_A.weight"
    torch.save({name: torch.ones(1).expand(2, 1 << 40)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="not plain tensors"):
        load_lora(tmp_path / "x.pth")


ODD = {
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(10, 2), 0.1, 0, torch.qint8),
    "without content": lambda: torch.empty(1 << 40, 2, device="meta"),
    "sparse": lambda: torch.eye(10).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "complex": lambda: torch.ones(10, 2, dtype=torch.complex64),
    "truth values": lambda: torch.ones(10, 2, dtype=torch.bool),
    "bits": lambda: torch.ones(10, 2, dtype=torch.uint8).view(torch.bits8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path, kind):
    lora = {name: torch.ones(shape) for name, shape in good_names()[0].items()}
    torch.save(lora | {"diffusion_model.blocks.0.ffn.0.lora_B.weight": ODD[kind]()}, tmp_path / "lora.pth")
    assert answered(load_lora, tmp_path / "lora.pth")
    flow = SeaRaft(SEA_RAFT_MINIATURE).state_dict()
    torch.save(flow | {"init_conv.bias": ODD[kind]()}, tmp_path / "flow.pth")
    assert answered(load_sea_raft, tmp_path / "flow.pth")


def test_alphas_are_read_as_any_number_and_as_nothing_else(tmp_path):
    name = "lora_unet_blocks_1_self_attn_q.alpha"
    lora = {name: torch.ones(shape) for name, shape in good_names()[0].items()}
    for dtype in (torch.float8_e4m3fn, torch.bfloat16, torch.int64):
        save_file(lora | {name: torch.tensor(1.0).to(dtype)}, tmp_path / "x.safetensors")
        pair = load_lora(tmp_path / "x.safetensors").lora["blocks.1.self_attn.q"]
        assert torch.equal(pair.b, torch.full((6, 2), 0.5))  # alpha 1 at rank 2
    for odd in (torch.tensor(True), torch.tensor(1j)):
        torch.save(lora | {name: odd}, tmp_path / "x.pth")
        with pytest.raises(ValueError, match="the alpha of .* is nan; one number is needed"):
            load_lora(tmp_path / "x.pth")


def test_names_that_are_no_text_are_refused_without_being_written_out(tmp_path):
    endless = ("a",)
    for _ in range(16):
        endless = (endless, endless)
    torch.save({endless: torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="names a tensor by a tuple; names must be text"):
        read_weight_file(tmp_path / "x.pth")


def test_many_tensors_on_one_memory_cannot_claim_more_than_the_file_has(tmp_path):
    large = torch.ones(1 << 16)
    torch.save({str(number): large for number in range(100)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds tensors of 26214400 bytes that share memory"):
        read_weight_file(tmp_path / "x.pth")


def test_a_weight_under_two_names_is_refused_and_not_dropped(tmp_path):
    twice = {"blocks.0.self_attn.q.weight": (8, 8), "blocks.0.attn1.to_q.weight": (8, 8)}
    with pytest.raises(ValueError, match="x holds blocks.0.self_attn.q.weight twice, second as 'blocks.0.at"):
        rename_to_native(twice, DIT.choose_names(twice), "x")


def test_a_small_file_cannot_ask_for_a_large_net(tmp_path, monkeypatch):
    def built(*_, **__):
        raise AssertionError("the net was built before its file was known to fill it")

    wide = {"patch_embed.proj.weight": torch.ones(4096, 3, 14, 14), "pos_embed": torch.ones(1, 5, 4096)}
    wide |= {"blocks.0.mlp.fc1.weight": torch.ones(64, 4096), "blocks.0.mlp.fc2.weight": torch.ones(4096, 64)}
    save_file(
        wide | {f"blocks.{n}.x": torch.ones(1) for n in range(64)}, tmp_path / "x.safetensors", {"heads": "1"}
    )
    monkeypatch.setattr("smra_core.encoders.dinov2.DinoV2", built)
    with pytest.raises(ValueError, match="weights are missing"):
        load_dinov2(tmp_path / "x.safetensors")
    monkeypatch.setattr(torch.nn.Module, "to_empty", built)
    save_file({"image_encoder.pos_embed": torch.ones(1, 1, 1, 1280)}, tmp_path / "sam.safetensors")
    with pytest.raises(ValueError, match="593 weights are missing"):
        load_sam(tmp_path / "sam.safetensors")
    net = SeaRaft(SEA_RAFT_MINIATURE)
    save_sea_raft(net, tmp_path / "flow.safetensors")
    with safe_open(tmp_path / "flow.safetensors", framework="pt") as file:
        config = file.metadata()
    save_file({"flow_head.0.weight": torch.ones(1)}, tmp_path / "flow.safetensors", config)
    with pytest.raises(ValueError, match="weights are missing"):
        load_sea_raft(tmp_path / "flow.safetensors")


@pytest.mark.parametrize("place", ["model", "vae", "text_encoder"])
def test_a_gguf_file_is_refused_with_the_way_out(tmp_path, place):
    miniature = {"model": str(MINIATURE_FILES.transformer), "vae": str(MINIATURE_FILES.vae)}
    (tmp_path / "wan2.1-t2v-14b-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(100))
    given = (
        miniature | {"text_encoder": str(tmp_path)} | {place: str(tmp_path / "wan2.1-t2v-14b-Q4_K_M.gguf")}
    )
    with pytest.raises(
        ValueError, match="is a GGUF file, quantized in blocks. Get the model's bf16, fp16 or"
    ):
        find_wan_files(**given)


def test_a_header_is_read_where_the_file_is_larger_than_memory(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2, 3)}, path)

    def unmappable(*_, framework, **__):
        if framework == "pt":
            raise RuntimeError("unable to mmap 28577104848 bytes from file: Cannot allocate memory (12)")
        return safe_open(path, framework=framework)

    monkeypatch.setattr(weight_file, "safe_open", unmappable)
    assert read_shapes(path) == {"a": (2, 3)}
    with pytest.raises(ValueError, match="could not be mapped into memory .* take the fp8 file"):
        read_weight_file(path)
