"""The velocity loss where a model is given frames of the clip, as in image to video."""

from types import SimpleNamespace

import pytest
import torch

from smra_core.storage.content_hash import hash_content
from smra_core.training.job import TrainingJob, run_fingerprint
from smra_core.training.mora import MotionSample
from smra_core.training.motion_settings import MotionSettings
from smra_core.training.temporal_loss import draw_anchors, temporal_loss
from smra_core.training.train_settings import TrainSettings

TENSORS = torch.zeros(16, 3, 2, 2), torch.zeros(3, 4), torch.zeros(8, 2, 4, 4)
"""Latents, context and optical flow of a sample."""
FIRST = torch.tensor([[True, False, False], [True, False, False]])


def test_an_error_in_a_given_latent_costs_nothing_and_others_are_averaged():
    target = torch.zeros(2, 16, 3, 2, 2)
    velocity = target.clone()
    velocity[0, :, 0] += 7  # given
    velocity[1, :, 2] += 2  # 4 in one of two latents that count
    assert temporal_loss(velocity, target, given=FIRST).tolist() == [0, 2]
    assert temporal_loss(velocity, target).tolist() == pytest.approx([49 / 3, 4 / 3])


def test_the_debiased_loss_leaves_given_latents_out_too():
    """With anchor 1: sqrt(2) 2 in latent 2, nothing in latent 1; the mean of both is 4."""
    target = torch.zeros(1, 16, 3, 2, 2)
    velocity = target.clone()
    velocity[0, :, 0] += 7
    velocity[0, :, 2] += 2
    assert temporal_loss(velocity, target, torch.tensor([1]), FIRST[:1]).item() == pytest.approx(2 + 4)


def test_anchors_are_never_given_latents_and_all_others_come():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_anchors(2, 3, FIRST, generator) for _ in range(40)])
    assert set(drawn.flatten().tolist()) == {1, 2}


def test_anchors_of_text_to_video_are_drawn_as_ever():
    drawn = draw_anchors(3, 5, None, torch.Generator().manual_seed(4))
    assert torch.equal(drawn, torch.randint(5, (3,), generator=torch.Generator().manual_seed(4)))


def fingerprint(extra, given=None):
    sample = MotionSample("one", *TENSORS, extra, given)
    job = TrainingJob("motion", "x", MotionSettings(), TrainSettings(), [sample], [], lambda: None)
    return run_fingerprint(SimpleNamespace(base_fingerprint={}), job)["samples"]


def test_extra_inputs_make_another_run_and_runs_without_them_keep_their_names():
    image = torch.zeros(20, 3, 2, 2)
    assert fingerprint({}) == [hash_content("\n".join(map(hash_content, TENSORS)).encode())]
    kinds = [{}, {"c_concat": image}, {"c_concat": image + 1}, {"c_concat": image, "vace_strength": [0.5]}]
    assert len({fingerprint(extra)[0] for extra in kinds}) == len(kinds)
    assert fingerprint({"c_concat": image}, FIRST[0]) == fingerprint({"c_concat": image})
