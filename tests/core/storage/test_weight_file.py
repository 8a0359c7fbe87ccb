"""Weight files are recognized by their content, and what is no weight file is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from smra_core.storage.weight_file import (
    SAFETENSORS_ENDINGS,
    read_shapes,
    read_value_bytes,
    read_weight_file,
    write_weight_file,
)

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3)}
REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "ending", [".safetensors", ".sft", ".SFT", ".SAFETENSORS", ".pt", ".pth", ".bin", ""]
)
@pytest.mark.parametrize("save", [save_file, torch.save], ids=["safetensors", "torch"])
def test_the_content_decides_how_a_file_is_read(tmp_path, ending, save):
    path = tmp_path / f"weights{ending}"
    save(WEIGHTS, path)
    if save is torch.save and ending.lower() in SAFETENSORS_ENDINGS:
        with pytest.raises(ValueError, match="written by torch.save .* Rename it to end in .pt"):
            read_weight_file(path)
        return
    assert torch.equal(read_weight_file(path).tensors["a"], WEIGHTS["a"])
    assert read_shapes(path) == {"a": (2, 3)}


@pytest.mark.parametrize("save, ending", [(save_file, ".safetensors"), (torch.save, ".pt")])
def test_the_bytes_of_a_value_are_read_without_its_values(tmp_path, save, ending):
    sizes = {torch.float8_e4m3fn: 1, torch.float8_e5m2: 1, torch.int8: 1, torch.bool: 1, torch.uint8: 1,
             torch.bfloat16: 2, torch.float16: 2, torch.float32: 4, torch.int64: 8}  # fmt: skip
    save({str(dtype): torch.zeros(2, dtype=dtype) for dtype in sizes}, tmp_path / f"x{ending}")
    assert read_value_bytes(tmp_path / f"x{ending}") == {str(dtype): size for dtype, size in sizes.items()}


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    "content, told",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "a web page, not weights. Sign in"),
        (b"\n <html>", "a web page, not weights"),
        (b"", "is empty. Download the file again"),
        (b"\x1f\x8b\x08" + bytes(20), "a gzip archive. Unpack it"),
    ],
)
def test_what_stands_in_the_place_of_weights_is_named(tmp_path, ending, content, told):
    path = tmp_path / f"dog{ending}"
    path.write_bytes(content)
    for read in (read_weight_file, read_shapes):
        with pytest.raises(ValueError, match=told):
            read(path)


@pytest.mark.parametrize("name", ["x.GGUF", "x.safetensors"])
def test_a_gguf_file_of_any_name_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match="is a GGUF file"):
        read_weight_file(tmp_path / name)


@pytest.mark.parametrize("ending", [".sft", ".SAFETENSORS"])
def test_a_cut_safetensors_file_is_called_that(tmp_path, ending):
    save_file(WEIGHTS, tmp_path / "whole")
    path = tmp_path / f"cut{ending}"
    path.write_bytes((tmp_path / "whole").read_bytes()[:-8])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        read_weight_file(path)


@pytest.mark.parametrize(
    "wrapper", ["state_dict", "model", "lora", "module", "generator", "model_state_dict"]
)
def test_weights_in_a_wrapper_of_any_name_are_read(tmp_path, wrapper):
    torch.save(
        {wrapper: WEIGHTS, "step": 3, "args": {"rate": 0.1}, "optimizer": {"state": {}}}, tmp_path / "x.pt"
    )
    assert read_shapes(tmp_path / "x.pt") == {"a": (2, 3)}


def test_two_sets_of_weights_are_asked_about(tmp_path):
    torch.save({"params": WEIGHTS, "params_ema": WEIGHTS}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds 2 sets of weights: params, params_ema"):
        read_weight_file(tmp_path / "x.pt")


METADATA = {f"key {number}": 'a "quoted" \u00e9 \x01' for number in range(20)}
WRITE = f"""
import sys, torch
from smra_core.storage.weight_file import write_weight_file
write_weight_file(sys.argv[1], {{"a": torch.ones(2, 3)}}, {METADATA!r})
"""


def test_equal_files_have_equal_bytes_in_every_process(tmp_path):
    # The library's own order of metadata differs from process to process.
    write_weight_file(tmp_path / "first", {"a": torch.ones(2, 3)}, METADATA)
    subprocess.run([sys.executable, "-c", WRITE, tmp_path / "second"], check=True, cwd=REPOSITORY)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_sorted_metadata_is_read_back_as_it_was(tmp_path):
    metadata = {"b": 'a "quoted" é \x01\x7f \\ \n', "a": "犬", "empty": ""}
    write_weight_file(tmp_path / "x", WEIGHTS, metadata)
    file = read_weight_file(tmp_path / "x")
    assert file.metadata == metadata and torch.equal(file.tensors["a"], WEIGHTS["a"])
    content = (tmp_path / "x").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(metadata)
