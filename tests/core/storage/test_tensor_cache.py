import hashlib

import pytest
import torch

from smra_core.storage.content_hash import hash_content
from smra_core.storage.tensor_cache import TensorCache

KEY = {"vae": "abc", "size": [64, 64]}


class Counted:
    """Something costly; how often it was computed."""

    def __init__(self, value=1.0):
        self.value, self.times = value, 0

    def __call__(self):
        self.times += 1
        return {"latents": torch.full((2, 3), self.value, requires_grad=True).T, "other": torch.arange(3)}


def test_what_was_computed_once_is_read_from_disk_ever_after(tmp_path):
    compute = Counted()
    first = TensorCache(tmp_path).get_or_compute("latents", KEY, compute)
    cache = TensorCache(tmp_path)
    second = cache.get_or_compute("latents", KEY, compute)
    assert compute.times == 1 and (cache.hits, cache.misses) == (1, 0)
    for tensors in (first, second):
        assert tensors["latents"].tolist() == [[1.0, 1.0]] * 3 and tensors["other"].dtype == torch.int64
        assert tensors["latents"].is_contiguous() and not tensors["latents"].requires_grad


@pytest.mark.parametrize(
    "kind, key", [("flow", KEY), ("latents", {**KEY, "vae": "abd"}), ("latents", ["abc"])]
)
def test_another_kind_or_key_is_computed_anew(tmp_path, kind, key):
    cache = TensorCache(tmp_path)
    cache.get_or_compute("latents", KEY, Counted(1.0))
    assert cache.get_or_compute(kind, key, Counted(2.0))["latents"].unique().tolist() == [2.0]
    assert cache.misses == 2


def test_the_order_of_a_keys_parts_does_not_count(tmp_path):
    cache = TensorCache(tmp_path)
    assert cache.get_path("latents", KEY) == cache.get_path("latents", dict(reversed(KEY.items())))


@pytest.mark.parametrize("part", [torch.zeros(1), float("nan"), {1, 2}])
def test_a_key_that_json_cannot_hold_is_refused(tmp_path, part):
    with pytest.raises(ValueError, match="key of 'latents' is not made of JSON values .*content_hash"):
        TensorCache(tmp_path).get_path("latents", {"part": part})


def cut_short(content):
    return content[: len(content) // 2]


def one_bit_flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def empty(content):
    return b""


@pytest.mark.parametrize("damage", [cut_short, one_bit_flipped, empty])
def test_a_damaged_file_is_computed_again_and_told(tmp_path, caplog, damage):
    cache, compute = TensorCache(tmp_path), Counted()
    cache.get_or_compute("latents", KEY, compute)
    path = cache.get_path("latents", KEY)
    path.write_bytes(damage(path.read_bytes()))
    again = cache.get_or_compute("latents", KEY, compute)
    assert compute.times == 2 and again["latents"].unique().tolist() == [1.0]
    assert path.name in caplog.text and "computing them again" in caplog.text
    cache.get_or_compute("latents", KEY, compute)
    assert compute.times == 2


def test_a_failed_computation_leaves_no_file(tmp_path):
    def fail():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        TensorCache(tmp_path).get_or_compute("latents", KEY, fail)
    assert list(tmp_path.iterdir()) == []


def test_a_tensors_hash_is_its_shape_type_and_values():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert hash_content(tensor) == hash_content(tensor.T.contiguous().T)
    others = [tensor.T, tensor.reshape(6), tensor.double(), tensor + 1]
    assert len({hash_content(other) for other in [tensor, *others]}) == 5
    assert hash_content(torch.tensor(1.0)) != hash_content(torch.tensor([1.0]))


def test_a_file_and_its_bytes_have_sha256s_own_hash(tmp_path):
    content = bytes(range(256)) * 5000  # longer than one piece
    (tmp_path / "file").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert hash_content(tmp_path / "file") == hash_content(str(tmp_path / "file")) == expected
    assert hash_content(content) == expected
