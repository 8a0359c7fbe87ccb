import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from random_models import Sizes, write_random_dinov2, write_random_wan
from safetensors import safe_open
from safetensors.torch import load_file

from smra_core.data.subject_clip import SubjectClip
from smra_core.data.subject_set import SubjectImage
from smra_core.encoders.dinov2 import DinoV2
from smra_core.encoders.dinov2_files import DinoV2Config
from smra_core.lora.frozen_linear import FrozenForward
from smra_core.lora.plan import SUBJECT
from smra_core.lora.reader import load_lora
from smra_core.standalone.backend import StandaloneBackend
from smra_core.standalone.model_files import WanFiles, find_wan_files
from smra_core.storage.tensor_cache import TensorCache
from smra_core.training import subject as subject_training
from smra_core.training.job import TrainingJob, run_fingerprint
from smra_core.training.motion_settings import MotionSettings
from smra_core.training.run_folder import STATE, RunFolder
from smra_core.training.subject import (
    extract_patch_features,
    find_missing_masks,
    prepare_subject,
    train_subject,
)
from smra_core.training.sura import SubjectSettings
from smra_core.training.train_settings import TrainSettings
from smra_core.wan.latents import as_frames, as_video
from smra_core.wan.noise_range import NOISE_PRESETS, WHOLE, NoiseRange

SIDE = 32
SETTINGS = SubjectSettings(rank=2, width=SIDE, height=SIDE, projector_width=8)
HIGH_NOISE, MOTION_RANGE = NOISE_PRESETS["high-noise expert"], NOISE_PRESETS["motion"]
BANDS = ("0 to 0.333", "0.333 to 0.667", "0.667 to 1")
DINOV2 = DinoV2Config(width=24, depth=1, heads=2, hidden=48, gated=False, grid=2, registers=0)


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    _, model, _, vae, _, text = write_random_wan(folder, Sizes(), "native")
    return find_wan_files(model, vae, text)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    path = tmp_path_factory.mktemp("dinov2") / "dinov2.safetensors"
    write_random_dinov2(path, DINOV2)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return TensorCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def backend(tmp_path, wan, cache):
    """Runs of its own, encoded inputs from the tests before."""
    return StandaloneBackend(wan, tmp_path / "runs", cache, torch.device("cpu"), torch.float32)


@pytest.fixture
def empty_backend(tmp_path, backend):
    return replace(backend, cache=TensorCache(tmp_path / "cache"))


@pytest.fixture
def loaded(monkeypatch):
    """Every model that is loaded, with its kind."""
    models = []

    def watched(kind, load):
        def loading(*args):
            models.append((kind, load(*args)))
            return models[-1][1]

        return loading

    for kind in ("denoiser", "codec", "text"):
        monkeypatch.setattr(WanFiles, f"load_{kind}", watched(kind, getattr(WanFiles, f"load_{kind}")))
    monkeypatch.setattr(subject_training, "load_dinov2", watched("dinov2", subject_training.load_dinov2))
    return models


def kinds(loaded):
    return [kind for kind, _ in loaded]


def images(count=2, mask=True):
    generator = torch.Generator().manual_seed(0)
    mask_px = torch.zeros(1, SIDE, SIDE)
    mask_px[:, 8:24, 8:24] = 1
    return [
        SubjectImage(
            f"{i}.png", Path(f"{i}.png"), torch.rand(3, SIDE, SIDE, generator=generator),
            mask_px if mask else None, "A picture of sks dog",
        )
        for i in range(count)
    ]  # fmt: skip


def steps(count, **changes):
    return TrainSettings(
        **{"steps": count, "accumulate": 1, "learning_rate": 1e-2, "save_every": 2, **changes}
    )


def train(backend, dinov2, count=2, on_step=None, settings=SETTINGS, data=None, **changes):
    return train_subject(backend, data or images(), dinov2, settings, steps(count, **changes), "dog", on_step)


def same_tensors(first, second):
    one, two = load_file(first), load_file(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_pictures_become_a_lora_that_says_what_it_is(empty_backend, dinov2, loaded):
    infos = []
    trained = train(empty_backend, dinov2, on_step=infos.append)
    found = load_lora(trained.path, empty_backend.spec)
    lora, metadata = found.lora, found.metadata
    assert list(lora) == SUBJECT.select(empty_backend.spec.linear_names()) and found.ignored == []
    assert all(pair.rank == 2 and pair.b.any() for pair in lora.values())
    assert (metadata.purpose, metadata.plan, metadata.rank, metadata.steps) == ("subject", str(SUBJECT), 2, 2)
    assert metadata.captions == ("A picture of sks dog",) and found.dialect == "comfyui"
    assert [set(info.losses) for info in infos] == [{"region", "sura"}] * 2
    assert kinds(loaded) == ["text", "codec", "dinov2", "denoiser"]  # each once, the encoders first
    with open(trained.losses) as file:
        rows = list(csv.reader(file))
    bands = [f"{loss} at sigma {band}" for loss in ("region", "sura") for band in BANDS]
    assert rows[0] == ["step", "total", "region", "sura", *bands]
    assert [row[0] for row in rows[1:]] == ["1", "2"]
    expected = infos[0].losses["region"] + 0.05 * infos[0].losses["sura"]
    assert float(rows[1][1]) == pytest.approx(expected, rel=1e-5)


def test_a_second_run_encodes_nothing_and_a_finished_one_loads_nothing(backend, dinov2, loaded):
    first = train(backend, dinov2)
    loaded.clear()
    assert train(backend, dinov2) == first and kinds(loaded) == []
    misses = backend.cache.misses
    other = train(backend, dinov2, settings=replace(SETTINGS, rank=3))
    assert other.path != first.path and kinds(loaded) == ["denoiser"] and backend.cache.misses == misses


def test_fewer_steps_than_trained_are_told_with_the_way_out(backend, dinov2, caplog):
    longer = train(backend, dinov2, count=3)
    shorter = train(backend, dinov2, count=1)
    assert longer.notes == () and (shorter.path, shorter.steps) == (longer.path, 3)
    (note,) = shorter.notes
    assert "'dog' has 3 trained steps already, more than the 1 asked for" in note and note in caplog.text
    assert "Give another name to train one of 1 steps" in note


def test_the_frozen_model_is_the_same_after_training(empty_backend, dinov2, loaded):
    train(empty_backend, dinov2)
    used = dict(loaded)
    fresh = empty_backend.files.load_denoiser(torch.float32, torch.device("cpu")).dit.state_dict()
    after = used["denoiser"].dit.state_dict()
    assert fresh.keys() == after.keys() and all(torch.equal(fresh[name], after[name]) for name in fresh)
    assert all(isinstance(module.forward, FrozenForward) for module in used["denoiser"].linears().values())
    encoder = DinoV2(DINOV2)
    encoder.vit.load_state_dict(load_file(dinov2))
    kept = used["dinov2"].state_dict()
    assert all(torch.equal(weight, kept[name]) for name, weight in encoder.state_dict().items())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_stopped_run_goes_on_to_the_same_file(backend, tmp_path, dinov2, error):
    whole = train(replace(backend, runs=tmp_path / "whole"), dinov2, 4)

    def stop(info):
        if info.step == 3:
            raise error

    with pytest.raises(error):
        train(backend, dinov2, 4, stop)
    seen = []
    resumed = train(backend, dinov2, 4, lambda info: seen.append(info.step))
    assert seen == [4] and same_tensors(resumed.path, whole.path)
    assert same_tensors(resumed.path.with_name(STATE), whole.path.with_name(STATE))
    assert resumed.losses.read_text() == whole.losses.read_text()


def test_more_steps_extend_a_finished_run(backend, tmp_path, dinov2):
    whole = train(replace(backend, runs=tmp_path / "whole"), dinov2, 4)
    short = train(backend, dinov2, 2)
    longer = train(backend, dinov2, 4)
    assert longer.path == short.path and same_tensors(longer.path, whole.path)
    assert load_lora(longer.path).metadata.steps == longer.steps == 4


def test_a_stopped_run_can_be_asked_for_fewer_steps_and_its_file_says_how_many_it_had(backend, dinov2):
    def stop(info):
        if info.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(backend, dinov2, 4, stop)
    trained = train(backend, dinov2, 2)
    assert load_lora(trained.path).metadata.steps == trained.steps == 3


def test_a_lora_file_that_was_deleted_is_written_again_without_training(backend, dinov2):
    first = train(backend, dinov2)
    before = load_file(first.path)
    first.path.unlink()
    seen = []
    again = train(backend, dinov2, on_step=seen.append)
    assert seen == [] and all(torch.equal(t, before[name]) for name, t in load_file(again.path).items())


def test_what_a_run_depends_on_gives_it_a_folder_of_its_own(backend, dinov2):
    first = train(backend, dinov2, 1)
    brighter = [image._replace(pixels=image.pixels * 0.9) for image in images()]
    renamed = [image._replace(caption="A picture of vvt dog") for image in images()]
    other_mask = [image._replace(mask_px=torch.ones(1, SIDE, SIDE)) for image in images()]
    others = [
        train(backend, dinov2, 1, data=brighter),
        train(backend, dinov2, 1, data=renamed),
        train(backend, dinov2, 1, data=other_mask),
        train(backend, dinov2, 1, seed=1),
        train(backend, None, 1, settings=replace(SETTINGS, sura_weight=0.0)),
    ]
    others += [train(backend, dinov2, 1, settings=replace(SETTINGS, noise_range=MOTION_RANGE))]
    assert len({trained.path for trained in [first, *others]}) == 7
    assert train(backend, dinov2, 1, save_every=7).path == first.path


FOLDERS_BEFORE = [(SubjectSettings(), "607e893d95e7"), (MotionSettings(), "dfeb0504dc63")]
"""Settings and the hash of their run on a toy, as it was before there were noise ranges."""


@pytest.mark.parametrize("settings, folder", FOLDERS_BEFORE, ids=["subject", "motion"])
def test_runs_from_before_a_newer_setting_keep_their_folder(settings, folder, tmp_path):
    purpose = "subject" if isinstance(settings, SubjectSettings) else "motion"
    job = TrainingJob(purpose, "toy", settings, TrainSettings(), [], [], load_objective=None)
    parts = run_fingerprint(SimpleNamespace(base_fingerprint={"base": "toy"}), job)
    assert RunFolder(tmp_path, "toy", parts).path.name == f"toy-{folder}"


def test_a_lora_of_one_expert_says_so_in_its_name_and_metadata(backend, dinov2):
    trained = train(backend, dinov2, 1, settings=replace(SETTINGS, noise_range=HIGH_NOISE))
    assert trained.name == "dog_high_noise" and "subject-dog_high_noise-" in str(trained.path)
    metadata = load_lora(trained.path).metadata
    assert metadata.name == "dog_high_noise" and metadata.get_noise_range() == HIGH_NOISE
    with safe_open(trained.path, "pt") as file:
        about = file.metadata()
    assert about["modelspec.timestep_range"] == "875,1000"
    assert (about["ss_min_timestep"], about["ss_max_timestep"]) == ("875", "1000")
    whole = train(backend, dinov2, 1)
    with safe_open(whole.path, "pt") as file:
        assert "modelspec.timestep_range" not in file.metadata()
    assert whole.name == "dog" and load_lora(whole.path).metadata.get_noise_range() == WHOLE


def test_a_name_of_the_other_expert_is_refused_before_anything_is_encoded(backend, loaded, dinov2):
    settings = replace(SETTINGS, noise_range=HIGH_NOISE)
    with pytest.raises(ValueError, match="'dog_low_noise' is of the low-noise expert.*Change the name"):
        train_subject(backend, images(), dinov2, settings, steps(1), "dog_low_noise")
    assert kinds(loaded) == []


def test_every_step_draws_from_the_noise_range(backend, dinov2):
    settings, infos = replace(SETTINGS, noise_range=NoiseRange(0.25, 0.5)), []
    trained = train(backend, dinov2, 3, on_step=infos.append, settings=settings)
    columns = [name for info in infos for name, value in info.by_noise.items() if value is not None]
    edges = {"0.25 to 0.333", "0.333 to 0.417", "0.417 to 0.5"}
    assert len(columns) >= 6 and {name.split(" at sigma ")[1] for name in columns} <= edges
    whole = train(backend, dinov2, 3)
    assert not same_tensors(trained.path, whole.path)


def test_without_sura_no_encoder_is_read(backend, loaded):
    infos = []
    train(backend, Path("nowhere"), settings=replace(SETTINGS, sura_weight=0.0), on_step=infos.append)
    assert "dinov2" not in kinds(loaded) and set(infos[0].losses) == {"region"}


def test_a_share_of_sura_without_its_weight_is_told_to_have_no_effect(backend, caplog):
    train(backend, None, 1, settings=replace(SETTINGS, sura_weight=0.0, sura_share=0.3))
    assert "sura_share 0.3 has no effect, because sura_weight 0 turns that loss off" in caplog.text


def test_missing_encoder_and_missing_mask_are_refused_before_anything_is_encoded(backend, dinov2, loaded):
    with pytest.raises(ValueError, match="SuRA at sura_weight 0.05 needs DINOv2"):
        train(backend, None)
    with pytest.raises(ValueError, match="0.png has no mask. Add one to masks/"):
        train(backend, dinov2, data=images(mask=False))
    assert loaded == []


def test_features_are_the_encoders_one_a_token_in_y_x_order(backend, dinov2):
    picture = torch.rand(3, SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(2))
    (features,) = extract_patch_features(backend, [picture], dinov2)
    assert features.shape == (2 * 4, DINOV2.width)
    encoder = DinoV2(DINOV2)
    encoder.vit.load_state_dict(load_file(dinov2))
    torch.testing.assert_close(features, encoder.extract_patch_features(picture[None])[0])


def test_contexts_and_latents_are_what_the_encoders_say_and_are_kept(empty_backend, loaded):
    picture = images(1)[0].pixels
    for expected in (["text", "codec"], []):
        loaded.clear()
        context = empty_backend.encode_captions(["a dog", "a", "a dog"])
        (latents,) = empty_backend.encode_clips([picture[None]])
        assert kinds(loaded) == expected
    assert list(context) == ["a dog", "a"] and context["a"].shape == (512, 8)
    cpu = torch.device("cpu")
    text = empty_backend.files.load_text(torch.float32, cpu)
    assert torch.equal(context["a dog"], text.encode(["a dog"])[0])
    codec = empty_backend.files.load_codec(torch.float32, cpu)
    assert torch.equal(latents, codec.encode(as_video(picture[None]))[0]) and latents.shape == (16, 1, 4, 4)


def test_pixels_and_frames_are_each_others_inverse():
    frames = torch.rand(5, 3, 4, 6)
    pixels = as_video(frames)
    assert pixels.shape == (1, 3, 5, 4, 6)
    torch.testing.assert_close(as_frames(pixels[0]), frames)
    assert as_frames(torch.tensor([-3.0, 3.0]).view(1, 2, 1, 1).expand(3, 2, 1, 1)).unique().tolist() == [
        0,
        1,
    ]


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
    monkeypatch.setattr(subject_training, "load_sam", sam.load)
    monkeypatch.setattr(subject_training, "find_subject_mask", sam.mask)
    return sam


@pytest.fixture
def sam_file(tmp_path):
    (tmp_path / "sam.pth").write_bytes(b"weights")
    return tmp_path / "sam.pth"


def images_with(*masks):
    return [
        SubjectImage(f"{i}.png", Path(f"{i}.png"), torch.full((3, SIDE, SIDE), i / 10), mask, "a sks dog")
        for i, mask in enumerate(masks)
    ]


def test_only_missing_masks_are_asked_for(sam, sam_file, empty_backend):
    own = torch.ones(1, SIDE, SIDE)
    masked = find_missing_masks(images_with(own, None), sam_file, empty_backend)
    assert masked[0].mask_px is own and sam.asked == 1
    assert masked[1].mask_px.sum() == SIDE * SIDE / 2 and masked[1].name == "1.png"


def test_sam_is_not_loaded_when_every_picture_has_its_mask(sam, sam_file, empty_backend):
    find_missing_masks(images_with(torch.ones(1, SIDE, SIDE)), sam_file, empty_backend)
    find_missing_masks(images_with(torch.ones(1, SIDE, SIDE)), None, empty_backend)
    assert sam.loaded == 0


def test_a_second_run_finds_the_masks_of_the_first(sam, sam_file, empty_backend):
    first = find_missing_masks(images_with(None, None), sam_file, empty_backend)
    second = find_missing_masks(images_with(None, None), sam_file, empty_backend)
    assert (sam.loaded, sam.asked) == (1, 2)
    assert all(torch.equal(a.mask_px, b.mask_px) for a, b in zip(first, second, strict=True))
    sam_file.write_bytes(b"other weights")
    find_missing_masks(images_with(None), sam_file, empty_backend)
    assert (sam.loaded, sam.asked) == (2, 3)


def test_missing_masks_without_sam_are_refused_by_name(sam, empty_backend):
    own = torch.ones(1, SIDE, SIDE)
    with pytest.raises(ValueError, match="2 pictures have no mask or an empty one, first 1.png. Give masks"):
        find_missing_masks(images_with(own, None, None), None, empty_backend)


def make_clip(frames=5):
    """A clip whose first frame is the first picture, with the subject in its second half alone."""
    pictures = torch.stack([image.pixels for image in images(frames)])
    masks_px = torch.zeros(frames, 1, SIDE, SIDE)
    masks_px[frames // 2 + 1 :, :, 8:24, 8:24] = 1
    return SubjectClip("run.mp4", Path("run.mp4"), pictures, masks_px, "a sks dog runs")


def test_a_clip_is_one_sample_with_the_mean_features_of_each_latents_frames(backend, dinov2):
    (picture,), (clip,) = (
        prepare_subject(backend, images(1), dinov2),
        prepare_subject(backend, [make_clip()], dinov2),
    )
    assert clip.latents.shape == (16, 2, 4, 4) and clip.features.shape == (2 * 4, DINOV2.width)
    assert torch.equal(clip.features[:4], picture.features)
    by_frame = extract_patch_features(backend, list(make_clip().frames), dinov2)
    torch.testing.assert_close(clip.features[4:], torch.stack(by_frame[1:]).mean(0))
    assert not clip.mask_latent[:, 0].any()
    assert clip.mask_latent[0, 1].tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_pictures_and_a_clip_are_trained_together(backend, dinov2):
    infos = []
    trained = train(
        backend, dinov2, data=[*images(1), make_clip()], on_step=infos.append, count=4, batch_size=2
    )
    assert load_lora(trained.path).metadata.captions == ("A picture of sks dog", "a sks dog runs")
    assert all(info.losses["region"] > 0 and -1 <= info.losses["sura"] <= 1 for info in infos)


def test_a_clip_whose_masks_are_missing_or_empty_is_refused_before_anything_is_encoded(empty_backend, loaded):
    for masks_px, message in (
        (None, "run.mp4 has no mask"),
        (torch.zeros(5, 1, SIDE, SIDE), "run.mp4 is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_subject(empty_backend, [make_clip()._replace(masks_px=masks_px)], None)
    assert not loaded
