"""Metrics of a video, with encoders that look up given embeddings, against independent computations."""

import json

import numpy as np
import pytest
import torch

from smra_core.encoders.dino import Dino
from smra_core.encoders.sea_raft import load_sea_raft
from smra_core.evaluation.evaluate import EVALUATION_HELP, EvaluationModels, References, evaluate_video
from smra_core.evaluation.evaluation_table import render_evaluations, to_json
from smra_core.evaluation.metrics import measure_subject_consistency
from smra_core.evaluation.picture_encoder import NoTextEmbedding
from smra_core.evaluation.quality import load_aesthetic_layer, shrink
from smra_core.miniature.held_out_files import render_motion
from smra_core.miniature.weight_paths import SEA_RAFT_FILE
from smra_core.storage.weight_file import write_weight_file

FRAMES, CHANNELS, SIZE = 5, 6, 16
DRAWN = torch.randn(FRAMES + 2, CHANNELS, generator=torch.Generator().manual_seed(3))
TEXT = torch.randn(CHANNELS, generator=torch.Generator().manual_seed(4))


class LookedUp:
    """Encoder whose embedding of a picture is the row of DRAWN that its gray level names."""

    name, logit_scale = "a table", 20.0

    def embed_pictures(self, pictures):
        return DRAWN[(pictures[:, 0, 0, 0] * 10).round().long()]

    def embed_text(self, text):
        return TEXT


class LookedUpDino(LookedUp, Dino):
    def __init__(self):
        pass


class WithoutText(LookedUp):
    def embed_text(self, text):
        raise NoTextEmbedding("needs a CLIP with a projection")


def gray(rows):
    return torch.stack([torch.full((3, SIZE, SIZE), row / 10) for row in rows])


VIDEO, SUBJECT = gray(range(FRAMES)), list(gray([FRAMES, FRAMES + 1]))
REFERENCES = References("a dog", SUBJECT)


def cosines(a, b):
    """Every cosine of two lists of vectors, in numpy and float64."""
    a, b = (np.asarray(each, dtype=np.float64) for each in (a, b))
    return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


def test_every_metric_equals_an_independent_computation_on_given_embeddings(tmp_path):
    weight = torch.linspace(-1, 1, CHANNELS)[None]
    write_weight_file(tmp_path / "layer.safetensors", {"weight": weight, "bias": torch.tensor([5.0])}, {})
    layer = load_aesthetic_layer(tmp_path / "layer.safetensors")
    models = EvaluationModels(LookedUp(), LookedUpDino(), pick_score=LookedUp(), aesthetic=layer)
    values = evaluate_video(VIDEO, REFERENCES, models).values
    frames, subject = DRAWN[:FRAMES].numpy(), DRAWN[FRAMES:].numpy()
    between = cosines(frames, frames)
    consistency = [(max(0, between[i, 0]) + max(0, between[i, i - 1])) / 2 for i in range(1, FRAMES)]
    units = frames.astype(np.float64) / np.linalg.norm(frames, axis=1)[:, None]
    expected = {
        "CLIP-T": cosines(frames, TEXT[None].numpy()).mean(),
        "CLIP-I": cosines(frames, subject).mean(),
        "DINO-I": cosines(frames, subject).mean(),
        "Temporal Consistency": np.mean([between[i, i + 1] for i in range(FRAMES - 1)]),
        "Subject Consistency": np.mean(consistency),
        "PickScore": 20 * cosines(frames, TEXT[None].numpy()).mean(),
        "Aesthetic": (units @ weight.numpy()[0] + 5).mean() / 10,
    }
    assert values == pytest.approx(expected, abs=1e-4)


def test_what_is_missing_leaves_its_metrics_out_by_name():
    result = evaluate_video(VIDEO, References(), EvaluationModels(clip=WithoutText()))
    assert set(result.values) == {"Temporal Consistency"}
    assert result.left_out["CLIP-T"] == "needs the prompt"
    assert result.left_out["DINO-I"] == "needs DINO or DINOv2"
    assert result.left_out["Motion Fidelity (flow)"] == "needs SEA-RAFT"
    assert set(result.left_out) | set(result.values) <= set(EVALUATION_HELP)
    prompted = evaluate_video(VIDEO, References("a dog"), EvaluationModels(clip=WithoutText()))
    assert prompted.left_out["CLIP-T"] == "needs a CLIP with a projection"


def test_metrics_by_dinov2_bear_its_name():
    result = evaluate_video(VIDEO, REFERENCES, EvaluationModels(dino=LookedUp()))
    assert set(result.values) == {"DINO-I (DINOv2)", "Subject Consistency (DINOv2)"}


def test_an_aesthetic_layer_of_another_clip_is_left_out(tmp_path):
    content = {"weight": torch.ones(1, CHANNELS + 1), "bias": torch.ones(1)}
    write_weight_file(tmp_path / "layer.safetensors", content, {})
    models = EvaluationModels(LookedUp(), aesthetic=load_aesthetic_layer(tmp_path / "layer.safetensors"))
    assert "ViT-L/14" in evaluate_video(VIDEO, REFERENCES, models).left_out["Aesthetic"]


def test_motion_of_a_clip_equals_its_own_and_one_upside_down_moves_the_other_way():
    clip, models = render_motion(), EvaluationModels(sea_raft=load_sea_raft(SEA_RAFT_FILE))
    clip = clip[:6]
    same = evaluate_video(clip, References(motion=clip), models).values
    assert same["Motion Fidelity (flow)"] == pytest.approx(100) and same["Motion Amount"] == pytest.approx(1)
    upside_down = evaluate_video(clip.flip(-2)[:4], References(motion=clip), models)
    assert upside_down.values["Motion Fidelity (flow)"] < 0
    assert any("first 4 of 4 and 6 frames" in note for note in upside_down.notes)
    with pytest.raises(ValueError, match="Resize the clip"):
        evaluate_video(clip[..., :32], References(motion=clip), models)


def test_a_picture_is_no_video():
    with pytest.raises(ValueError, match="two frames"):
        evaluate_video(VIDEO[:1], REFERENCES, EvaluationModels(clip=LookedUp()))


def test_subject_consistency_by_hand():
    frames = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # Cosines to the first are 0 and -1, to the one before 0 and 0; below 0 counts as 0.
    assert measure_subject_consistency(frames) == 0
    assert measure_subject_consistency(torch.tensor([[1.0, 0.0], [0.6, 0.8]])) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="at least 2"):
        measure_subject_consistency(frames[:1])


def test_frames_are_shrunk_to_512_pixels_and_never_enlarged():
    assert shrink(torch.zeros(1, 3, 480, 832)).shape == (1, 3, 295, 512)
    assert shrink(VIDEO) is VIDEO


def test_another_file_is_no_aesthetic_layer(tmp_path):
    write_weight_file(tmp_path / "mlp.safetensors", {"layers.0.weight": torch.ones(2, 3)}, {})
    with pytest.raises(ValueError, match="sa_0_4_vit_l_14_linear"):
        load_aesthetic_layer(tmp_path / "mlp.safetensors")


def test_text_and_json_show_metrics_what_was_left_out_and_notes():
    one = evaluate_video(VIDEO, REFERENCES, EvaluationModels(clip=LookedUp()))
    two = evaluate_video(VIDEO.flip(0)[:3], REFERENCES, EvaluationModels(clip=LookedUp()))
    text = render_evaluations({"a.mp4": one, "b.mp4": two})
    mean = (one.values["CLIP-I"] + two.values["CLIP-I"]) / 2
    line = next(line for line in text.splitlines() if line.startswith("CLIP-I"))
    assert line.split()[1:] == [
        f"{value:.4f}" for value in (one.values["CLIP-I"], two.values["CLIP-I"], mean)
    ]
    assert "Left out: Imaging (needs MUSIQ)." in text and text.count("a table") == 1
    content = json.loads(to_json({"a.mp4": one}))["a.mp4"]
    assert content["metrics"] == one.values and content["left_out"] == one.left_out
