"""SAM: files are recognized by their width, and a picture's prompt gives one mask on its pixel grid."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.amg import calculate_stability_score

import smra_core.encoders.sam as sam_module
from smra_core.encoders import sam_automatic
from smra_core.encoders.sam import find_subject_mask, load_sam
from smra_core.encoders.sam_automatic import (
    GRID,
    choose_subject,
    find_candidates,
    make_point_grid,
    score_subject,
)
from smra_core.storage.weight_file import WeightFile

SIDE, PATCH, PROMPT_DIM = 64, 16, 32
WIDTHS = {"vit_b": 768, "vit_l": 1024, "vit_h": 1280}
HEIGHT, WIDTH = 40, 56


def tiny_sam(width=16):
    """All of SAM's parts, one encoder block, 64 px instead of 1024."""
    grid = SIDE // PATCH
    return Sam(
        ImageEncoderViT(
            img_size=SIDE,
            patch_size=PATCH,
            embed_dim=width,
            depth=1,
            num_heads=2,
            mlp_ratio=0.25,
            out_chans=PROMPT_DIM,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            global_attn_indexes=(0,),
        ),
        PromptEncoder(PROMPT_DIM, (grid, grid), (SIDE, SIDE), mask_in_chans=4),
        MaskDecoder(
            transformer_dim=PROMPT_DIM,
            transformer=TwoWayTransformer(depth=1, embedding_dim=PROMPT_DIM, num_heads=2, mlp_dim=32),
            iou_head_hidden_dim=16,
        ),
    ).eval()


@pytest.fixture
def sam():
    """Random weights, large enough that masks are neither empty nor full and depend on the prompt."""
    torch.manual_seed(0)
    sam = tiny_sam()
    with torch.no_grad():
        for name, weight in sam.named_parameters():
            if "norm" not in name:
                weight.normal_(0, 0.3)
    return sam


@pytest.fixture
def picture():
    return torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def three_masks(sam, picture, **prompt):
    """What SAM itself answers: masks `3 H W` and predicted IoUs."""
    predictor = SamPredictor(sam)
    predictor.set_image((picture * 255).round().byte().permute(1, 2, 0).numpy())
    return predictor.predict(**prompt, multimask_output=True)[:2]


def point_prompt(x, y):
    return {"point_coords": np.array([[x, y]]), "point_labels": np.array([1])}


def raise_iou(sam, best):
    """SAM's head gives four IoUs, of which the first belongs to the single mask."""
    with torch.no_grad():
        sam.mask_decoder.iou_prediction_head.layers[-1].bias[1 + best] += 100


CENTER = {"point": (WIDTH / 2, HEIGHT / 2)}


def test_the_mask_is_zeros_and_ones_on_the_pixel_grid(sam, picture):
    mask_px = find_subject_mask(sam, picture, **CENTER)
    assert mask_px.shape == (1, HEIGHT, WIDTH) and mask_px.dtype == torch.float32
    assert set(mask_px.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_mask_with_the_best_predicted_iou_is_chosen(sam, picture, best):
    raise_iou(sam, best)
    masks, _ = three_masks(sam, picture, **point_prompt(WIDTH / 2, HEIGHT / 2))
    assert len({mask.tobytes() for mask in masks}) == 3
    assert torch.equal(find_subject_mask(sam, picture, **CENTER)[0], torch.from_numpy(masks[best]).float())


@pytest.mark.parametrize(
    "asked, prompt",
    [
        ({"point": (35, 10)}, point_prompt(35, 10)),
        ({"point": (10, 35)}, point_prompt(10, 35)),
        ({"box": (8, 4, 50, 20)}, {"box": np.array([8, 4, 50, 20])}),
    ],
)
def test_a_point_is_x_y_and_a_box_is_left_top_right_bottom(sam, picture, asked, prompt):
    raise_iou(sam, 1)
    masks, _ = three_masks(sam, picture, **prompt)
    mask_px = find_subject_mask(sam, picture, **asked)
    assert torch.equal(mask_px[0], torch.from_numpy(masks[1]).float())
    assert not torch.equal(mask_px, find_subject_mask(sam, picture, **CENTER))


def test_nothing_found_is_an_error_that_names_the_prompt(sam, picture):
    sam.mask_threshold = float("inf")
    with pytest.raises(ValueError, match=r"found no subject at point \(28\.0, 20\.0\)"):
        find_subject_mask(sam, picture, **CENTER)


def test_points_stand_on_a_grid_that_keeps_away_from_the_edges():
    points = make_point_grid()
    assert points.shape == (GRID**2, 2)
    assert points.min(0).tolist() == pytest.approx([0.15, 0.15])
    assert points.max(0).tolist() == pytest.approx([0.85, 0.85])


def candidates_by_hand(sam, picture, least_iou, least_stability):
    """The masks of all grid points by the predictor, without those below the limits; best IoU first."""
    predictor = SamPredictor(sam)
    predictor.set_image(picture)
    points = predictor.transform.apply_coords(make_point_grid() * [WIDTH, HEIGHT], (HEIGHT, WIDTH))
    found = []
    for some in torch.as_tensor(points, dtype=torch.float32)[:, None].split(12):
        logits, ious, _ = predictor.predict_torch(some, torch.ones(some.shape[:2]), return_logits=True)
        stability = calculate_stability_score(logits.flatten(0, 1), sam.mask_threshold, 1.0)
        for mask, iou, stable in zip(logits.flatten(0, 1) > 0, ious.flatten(), stability, strict=True):
            if iou > least_iou and stable >= least_stability:
                found.append((iou.item(), mask))
    return [mask for _, mask in sorted(found, key=lambda each: -each[0])]


@pytest.mark.parametrize("least_iou, least_stability", [(0.0, 0.0), (1.2, 0.0), (0.0, 0.05), (1.1, 0.03)])
def test_candidates_are_the_masks_of_all_points_above_the_limits(
    sam, picture, monkeypatch, least_iou, least_stability
):
    monkeypatch.setattr(sam_automatic, "_LEAST_PREDICTED_IOU", least_iou)
    monkeypatch.setattr(sam_automatic, "_LEAST_STABILITY", least_stability)
    pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
    expected = candidates_by_hand(sam, pixels, least_iou, least_stability)
    found = list(find_candidates(sam, pixels))
    assert len(found) == len(expected) > 0
    assert (len(found) == 3 * GRID**2) == (least_iou == least_stability == 0)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_points_are_moved_to_the_device_in_float32(sam, picture, monkeypatch):
    seen = []
    ask = SamPredictor.predict_torch

    def note(self, points, *args, **kwargs):
        seen.append(points.dtype)
        return ask(self, points, *args, **kwargs)

    monkeypatch.setattr(SamPredictor, "predict_torch", note)
    list(find_candidates(sam, (picture * 255).byte().permute(1, 2, 0).numpy()))
    assert set(seen) == {torch.float32} and len(seen) == GRID**2 / 12


def block(top, bottom, left, right):
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_large_central_mask_is_the_subject():
    subject = block(5, 15, 5, 15)
    others = [
        block(8, 12, 8, 12),  # a part of it
        block(0, 20, 0, 20),  # everything
        block(10, 20, 0, 20),  # the floor
        block(0, 8, 0, 8),  # something in a corner
        block(10, 10, 10, 10),  # nothing
    ]
    for place in range(len(others) + 1):
        found = choose_subject([*others[:place], subject, *others[place:]])
        assert torch.equal(found, subject)
    assert choose_subject([others[1], others[4]]) is None


def test_the_score_is_what_the_shares_give():
    # A quarter of the picture, centered, no edge touched: the root of 0.25.
    assert score_subject(block(5, 15, 5, 15)) == pytest.approx(0.5)
    # The lower half: off by half a half side, one whole edge and half of two.
    assert score_subject(block(10, 20, 0, 20)) == pytest.approx(0.5**0.5 * 0.5 * 0.5)
    assert score_subject(block(0, 20, 0, 20)) == 0


def test_without_a_prompt_the_likely_subject_is_taken(sam, picture, monkeypatch):
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[10:30, 20:40] = True
    monkeypatch.setattr(sam_module, "find_candidates", lambda *_: [mask])
    assert torch.equal(find_subject_mask(sam, picture)[0], mask.float())
    monkeypatch.setattr(sam_module, "find_candidates", lambda *_: [])
    with pytest.raises(ValueError, match="nothing in the picture that looks like its subject"):
        find_subject_mask(sam, picture)


@pytest.mark.parametrize(
    "prompt",
    [
        {"point": (WIDTH, 3)},
        {"point": (-1, 3)},
        {"point": (3, HEIGHT)},
        {"box": (20, 0, 10, 10)},
        {"box": (0, 0, WIDTH, HEIGHT + 1)},
    ],
)
def test_a_prompt_outside_the_picture_is_refused(sam, picture, prompt):
    with pytest.raises(ValueError, match=f"not inside the picture of {WIDTH}x{HEIGHT} px"):
        find_subject_mask(sam, picture, **prompt)


def test_what_is_not_one_picture_in_0_to_1_is_refused(sam, picture):
    with pytest.raises(ValueError, match="one picture `3 H W` at a time"):
        find_subject_mask(sam, picture[None])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        find_subject_mask(sam, 2 * picture - 1)


@pytest.mark.parametrize("kind", ["vit_b", "vit_l", "vit_h"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_files_are_recognized_by_the_width_of_their_encoder(tmp_path, monkeypatch, kind, ending):
    for name, width in WIDTHS.items():
        monkeypatch.setitem(sam_model_registry, name, partial(tiny_sam, width))
    torch.manual_seed(2)
    weights = tiny_sam(WIDTHS[kind]).state_dict()
    path = tmp_path / f"sam.{ending}"
    torch.save(weights, path) if ending == "pth" else save_file(weights, path)
    before = torch.get_rng_state()
    sam = load_sam(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in sam.state_dict().items())
    assert not sam.training and not any(p.requires_grad for p in sam.parameters())


def test_a_missing_and_an_unknown_weight_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sam_model_registry, "vit_b", partial(tiny_sam, 768))
    weights = tiny_sam(768).state_dict()
    weights["mask_decoder.hf_token.weight"] = weights.pop("mask_decoder.iou_token.weight")
    save_file(weights, tmp_path / "sam_hq.safetensors")
    with pytest.raises(ValueError, match="missing .*iou_token.* unknown .*hf_token"):
        load_sam(tmp_path / "sam_hq.safetensors")


@pytest.mark.parametrize(
    "foreign",
    [
        {"vision_encoder.pos_embed": torch.zeros(1, 2, 2, 768)},
        {"image_encoder.pos_embed": torch.zeros(1, 2, 2, 320)},
        {"image_encoder.pos_embed": torch.zeros(768)},
    ],
)
def test_foreign_files_are_refused_with_what_they_hold(tmp_path, foreign):
    save_file(foreign, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=f"is not SAM.*{min(foreign)}.*Choose sam_vit_b"):
        load_sam(tmp_path / "foreign.safetensors")


NAMES_IN_SAM = {"vit_b": 314, "vit_l": 482, "vit_h": 594}


@pytest.mark.parametrize("kind", NAMES_IN_SAM)
def test_the_full_lists_of_published_files_are_told_apart_and_fit(kind):
    with torch.device("meta"):
        weights = sam_model_registry[kind]().state_dict()
    assert len(weights) == NAMES_IN_SAM[kind]
    assert sam_module._find_kind(WeightFile(Path("sam.pth"), weights, {})) == kind
    assert weights["image_encoder.pos_embed"].shape == (1, 64, 64, WIDTHS[kind])


def test_what_no_file_holds_is_as_in_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sam_model_registry, "vit_b", partial(tiny_sam, 768))
    publish_lora = tiny_sam(768)
    save_file(publish_lora.state_dict(), tmp_path / "sam.safetensors")
    buffers = dict(load_sam(tmp_path / "sam.safetensors").named_buffers())
    assert {"pixel_mean", "pixel_std"} == buffers.keys() - publish_lora.state_dict().keys()
    assert all(torch.equal(buffers[name], value) for name, value in publish_lora.named_buffers())
