from pathlib import Path

import pytest
import torch

from smra_core.data.subject_set import SubjectImage
from smra_core.standalone.backend import StandaloneBackend
from smra_core.storage.tensor_cache import TensorCache
from smra_core.training import subject as subject_masks
from smra_core.training.subject import find_missing_masks

SIDE = 8


class Sam:
    """Finds the upper half; counts how often it is loaded and asked."""

    def __init__(self):
        self.loaded, self.asked = 0, 0

    def load(self, path):
        self.loaded += 1
        return self

    def to(self, device):
        return self

    def mask(self, sam, pixels):
        self.asked += 1
        mask_px = torch.zeros(1, SIDE, SIDE)
        mask_px[:, : SIDE // 2] = 1
        return mask_px


@pytest.fixture
def sam(monkeypatch):
    sam = Sam()
    monkeypatch.setattr(subject_masks, "load_sam", sam.load)
    monkeypatch.setattr(subject_masks, "subject_mask", sam.mask)
    return sam


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "sam.pth").write_bytes(b"weights")
    return tmp_path / "sam.pth"


@pytest.fixture
def backend(tmp_path):
    return StandaloneBackend(
        None, tmp_path, TensorCache(tmp_path / "cache"), torch.device("cpu"), torch.float32
    )


def images(*masks):
    return [
        SubjectImage(f"{i}.png", Path(f"{i}.png"), torch.full((3, SIDE, SIDE), i / 10), mask, "a sks dog")
        for i, mask in enumerate(masks)
    ]


def test_only_missing_masks_are_asked_for(sam, weights, backend):
    own = torch.ones(1, SIDE, SIDE)
    masked = find_missing_masks(images(own, None), weights, backend)
    assert masked[0].mask_px is own and sam.asked == 1
    assert masked[1].mask_px.sum() == SIDE * SIDE / 2 and masked[1].name == "1.png"


def test_sam_is_not_loaded_when_every_picture_has_its_mask(sam, weights, backend):
    find_missing_masks(images(torch.ones(1, SIDE, SIDE)), weights, backend)
    find_missing_masks(images(torch.ones(1, SIDE, SIDE)), None, backend)
    assert sam.loaded == 0


def test_a_second_run_finds_the_masks_of_the_first(sam, weights, backend):
    first = find_missing_masks(images(None, None), weights, backend)
    second = find_missing_masks(images(None, None), weights, backend)
    assert (sam.loaded, sam.asked) == (1, 2)
    assert all(torch.equal(a.mask_px, b.mask_px) for a, b in zip(first, second, strict=True))
    weights.write_bytes(b"other weights")
    find_missing_masks(images(None), weights, backend)
    assert (sam.loaded, sam.asked) == (2, 3)


def test_missing_masks_without_sam_are_refused_by_name(sam, backend):
    own = torch.ones(1, SIDE, SIDE)
    with pytest.raises(ValueError, match="2 pictures have no mask or an empty one, first 1.png. Give masks"):
        find_missing_masks(images(own, None, None), None, backend)
