from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from smra_core.data.color_copies import add_color_copies
from smra_core.data.motion_clip import MotionClip
from smra_core.decoding.tiny_decoder import TinyDecoder
from smra_core.encoders.sea_raft import SeaRaft, load_sea_raft, save_sea_raft
from smra_core.encoders.sea_raft_config import SEA_RAFT_MINIATURE
from smra_core.lora.reader import load_lora
from smra_core.standalone.backend import StandaloneBackend
from smra_core.standalone.diffusers_wan import DiffusersCodec
from smra_core.storage.content_hash import hash_content
from smra_core.storage.tensor_cache import TensorCache
from smra_core.training.batches import choose_batch
from smra_core.training.clip_windows import ClipWindows
from smra_core.training.job import _hash_sample
from smra_core.training.motion import load_objective, prepare_motion, train_motion
from smra_core.training.motion_settings import MotionSettings
from smra_core.training.train_settings import TrainSettings
from smra_core.wan.settings import collect_identity

FRAMES, SIDE, TEXT = 5, SEA_RAFT_MINIATURE.least_side, 6


class Files:
    """Tiny models behind the interface of WanFiles; counts what is loaded."""

    def __init__(self, make_denoiser):
        self.make_denoiser, self.loaded = make_denoiser, []
        self.spec = make_denoiser().spec
        self.transformer_fingerprint, self.vae_fingerprint, self.text_fingerprint = "toy", "tiny", "words"
        self.share_of_8_bits = 0.0

    def load_denoiser(self, dtype, device, checkpoint=False, placement=None):
        self.loaded.append("transformer")
        return self.make_denoiser()

    def load_codec(self, dtype, device):
        self.loaded.append("vae")
        torch.manual_seed(5)
        return DiffusersCodec(AutoencoderKLWan(base_dim=4))

    def load_text(self, dtype, device):
        self.loaded.append("text")
        return self

    def encode(self, prompts):
        return torch.ones(len(prompts), 3, TEXT)


@pytest.fixture
def backend(tmp_path, toy_denoiser):
    cpu = torch.device("cpu")
    return StandaloneBackend(
        Files(toy_denoiser), tmp_path / "runs", TensorCache(tmp_path / "cache"), cpu, torch.float32
    )


@pytest.fixture
def sea_raft(tmp_path):
    torch.manual_seed(6)
    save_sea_raft(SeaRaft(SEA_RAFT_MINIATURE), tmp_path / "flow.safetensors", torch.float32)
    return tmp_path / "flow.safetensors"


@pytest.fixture
def clip():
    torch.manual_seed(7)
    picture = torch.rand(3, SIDE, SIDE)
    frames = torch.stack([picture.roll(2 * i, -1) for i in range(FRAMES)])
    return MotionClip("pan", Path("pan.mp4"), frames, "a camera pans", 16.0, [])


def short(**changes):
    return TrainSettings(**{"steps": 2, "accumulate": 1, **changes})


def test_a_clip_becomes_a_lora_and_a_finished_run_loads_nothing(backend, clip, sea_raft):
    steps = []
    settings = MotionSettings(rank=2)
    first = train_motion(backend, [clip], sea_raft, settings, short(), on_step=steps.append)
    assert first.path.is_file() and first.steps == 2
    assert [set(step.losses) for step in steps] == [{"temporal", "mora"}] * 2
    assert all(step.losses["mora"] > 0 for step in steps)
    loaded = backend.files.loaded
    assert sorted(loaded) == ["text", "transformer", "vae", "vae"]  # the VAE to encode, and to train through
    before = list(loaded)
    again = train_motion(backend, [clip], sea_raft, settings, short())
    assert again == first and backend.files.loaded == before


def test_the_whole_clip_is_decoded_in_pieces_where_memory_is_short(backend, clip, sea_raft):
    steps = []
    settings = MotionSettings(rank=2, decode="exact-low-memory")
    train_motion(backend, [clip], sea_raft, settings, short(steps=1), on_step=steps.append)
    assert steps[0].losses["mora"] > 0


def test_windows_start_from_states_of_the_clip(backend, clip, sea_raft):
    longer = clip._replace(frames=torch.cat([clip.frames, clip.frames[1:], clip.frames[1:]]))
    settings = MotionSettings(rank=2, decode="windowed", window=1, context=1)
    (sample,) = prepare_motion(backend, [longer], sea_raft)
    windows = load_objective(backend, sea_raft, settings, [sample]).windows_by_clip["pan"]
    assert [(kept.start, kept.latents, kept.state is None) for kept in windows] == [
        (0, range(1, 2), True), (1, range(2, 3), False), (2, range(3, 4), False),
    ]  # fmt: skip


def test_with_a_tiny_decoder_the_reference_is_the_clip_as_it_shows_it(
    backend, clip, sea_raft, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "smra_core.decoding.tiny_decoder.WORST_MATCH", float("inf")
    )  # random nets do not agree
    torch.manual_seed(9)
    tiny = TinyDecoder((8, 8, 8, 8))
    save_file(tiny.state_dict(), tmp_path / "tiny.safetensors")
    larger = clip._replace(frames=clip.frames.repeat(1, 1, 2, 2))
    (sample,) = prepare_motion(backend, [larger], sea_raft, tmp_path / "tiny.safetensors")
    assert sample.reference_flow.shape == (FRAMES - 1, 2, SIDE, SIDE)
    colored = add_color_copies([larger], 1, seed=0)
    _, copy = prepare_motion(backend, colored, sea_raft, tmp_path / "tiny.safetensors")
    assert torch.equal(copy.reference_flow, sample.reference_flow)
    settings = MotionSettings(rank=2, decode="tiny")
    steps = []
    train_motion(
        backend, [larger], sea_raft, settings, short(steps=1), on_step=steps.append,
        tiny_decoder=tmp_path / "tiny.safetensors",
    )  # fmt: skip
    assert steps[0].losses["mora"] >= 0


def test_another_flow_net_is_another_run(backend, clip, sea_raft):
    settings = MotionSettings(rank=2)
    first = train_motion(backend, [clip], sea_raft, settings, short(steps=1))
    torch.manual_seed(8)
    save_sea_raft(SeaRaft(SEA_RAFT_MINIATURE), sea_raft, torch.float32)
    assert train_motion(backend, [clip], sea_raft, settings, short(steps=1)).path != first.path


def test_the_reference_flow_is_the_clips_own_and_is_measured_once(backend, clip, sea_raft):
    flow = prepare_motion(backend, [clip], sea_raft)[0].reference_flow
    torch.testing.assert_close(flow, load_sea_raft(sea_raft).compute_pair_flows(clip.frames * 255))
    misses = backend.cache.misses
    assert torch.equal(prepare_motion(backend, [clip], sea_raft)[0].reference_flow, flow)
    assert backend.cache.misses == misses


def test_mora_weight_zero_trains_without_flow_net_or_decoder(backend, clip):
    steps = []
    settings = MotionSettings(rank=2, mora_weight=0.0)
    train_motion(backend, [clip], None, settings, short(steps=1), on_step=steps.append)
    assert set(steps[0].losses) == {"temporal"}
    assert backend.files.loaded.count("vae") == 1  # to encode the clip


def test_mora_without_flow_weights_is_refused_before_anything_is_encoded(backend, clip):
    with pytest.raises(ValueError, match="weight 1.0 needs SEA-RAFT"):
        train_motion(backend, [clip], None, MotionSettings(), short())
    assert not backend.files.loaded


def several(clip):
    """Three clips: two of one size, and one that is wider."""
    return [
        clip,
        clip._replace(name="back", frames=clip.frames.flip(0), caption="a camera pans back"),
        clip._replace(name="wide", frames=clip.frames.repeat(1, 1, 1, 2)),
    ]


def half_excluded(clip):
    exclude_px = torch.zeros(len(clip.frames), 1, SIDE, clip.frames.shape[-1])
    exclude_px[..., : SIDE // 2] = 1
    return clip._replace(exclude_px=exclude_px)


def test_several_clips_of_several_sizes_are_one_motion(backend, clip, sea_raft):
    clips, steps = several(clip), []
    samples = prepare_motion(backend, clips, sea_raft)
    assert [tuple(sample.latents.shape[1:]) for sample in samples] == [(2, 4, 4), (2, 4, 4), (2, 4, 8)]
    misses = backend.cache.misses
    settings, train = MotionSettings(rank=2), short(steps=1, batch_size=2)
    trained = train_motion(backend, clips, sea_raft, settings, train, on_step=steps.append)
    assert all(step.losses["mora"] > 0 for step in steps) and backend.cache.misses == misses
    assert load_lora(trained.path).metadata.captions == ("a camera pans", "a camera pans back")


def test_every_clip_caption_and_mask_belongs_to_the_runs_identity(backend, clip):
    settings = MotionSettings(rank=2, mora_weight=0.0)
    clips = several(clip)

    def folder(*data):
        return train_motion(backend, data, None, settings, short(steps=1)).path.parent.name

    masked = half_excluded(clip)
    other_mask = masked._replace(exclude_px=1 - masked.exclude_px)
    runs = [folder(clip), folder(clips[0], clips[1]), folder(*clips), folder(masked), folder(other_mask)]
    assert len(set(runs)) == len(runs) and folder(*clips) == runs[2]


def test_a_run_of_one_clip_is_called_as_before_there_were_several(backend, clip):
    (sample,) = prepare_motion(backend, [clip], None)
    parts = [hash_content(part) for part in sample[1:4]]
    assert _hash_sample(sample) == hash_content("\n".join(parts).encode())


def test_a_run_of_several_clips_resumes_bit_for_bit(backend, clip):
    settings, train = (
        MotionSettings(rank=2, mora_weight=0.0),
        short(steps=4, batch_size=2),
    )
    clips = [*several(clip)[:2], half_excluded(several(clip)[2])]

    def cancel(info):
        if info.step == 2:
            raise KeyboardInterrupt

    whole = load_file(train_motion(backend, clips, None, settings, train, "whole").path)
    with pytest.raises(KeyboardInterrupt):
        train_motion(backend, clips, None, settings, train, "cut", on_step=cancel)
    resumed = load_file(train_motion(backend, clips, None, settings, train, "cut").path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_mask_leaves_its_part_of_the_clip_out(backend, clip, sea_raft):
    (sample,) = prepare_motion(backend, [half_excluded(clip)], sea_raft)
    assert sample.mask_latent[..., :2].sum() == 0 and sample.mask_latent[..., 2:].all()
    assert sample.flow_weight_px[..., : SIDE // 2].sum() == 0
    assert sample.flow_weight_px[..., SIDE // 2 :].unique().tolist() == [2.0]


def test_a_mask_that_leaves_nothing_is_refused_before_anything_is_encoded(backend, clip, sea_raft):
    everything = clip._replace(exclude_px=torch.ones(FRAMES, 1, SIDE, SIDE))
    with pytest.raises(ValueError, match="mask of pan excludes all of the clip.*invert"):
        prepare_motion(backend, [clip, everything], sea_raft)
    assert not backend.files.loaded
    dots = torch.zeros(FRAMES, 1, SIDE, SIDE)
    dots[..., ::8, ::8] = 1
    with pytest.raises(ValueError, match="mask of pan leaves nothing to learn: it touches every cell"):
        prepare_motion(backend, [clip._replace(exclude_px=dots)], sea_raft)


def test_states_that_do_not_fit_are_computed_again_and_are_the_same(backend, clip):
    samples = prepare_motion(backend, [half._replace(frames=half.frames.repeat(2, 1, 1, 1)[:9]) for half in
                                       several(clip)[:2]], None)  # fmt: skip
    decoder = backend.load_decoder()
    roomy, tight = (ClipWindows(samples, decoder, 1, 1, backend.device, limit) for limit in (1 << 30, 1))
    assert set(roomy._kept) == {"pan", "back"} and len(tight._kept) == 1
    for name in ("pan", "back", "pan"):
        for kept, again in zip(roomy[name], tight[name], strict=True):
            assert kept.latents == again.latents
            assert all(map(torch.equal, kept.state or (), again.state or ()))
    assert tight.get("unknown") is None


def count_measured(monkeypatch):
    """Count the clips whose flow is measured."""
    counted, measure = [], SeaRaft.compute_pair_flows
    monkeypatch.setattr(
        SeaRaft, "compute_pair_flows", lambda self, frames: counted.append(1) or measure(self, frames)
    )
    return counted


def test_copies_in_other_colors_have_the_flow_and_mask_of_their_clip_and_latents_of_their_own(
    backend, clip, sea_raft, monkeypatch
):
    originals, counted = [half_excluded(clip), several(clip)[1]], count_measured(monkeypatch)
    samples = prepare_motion(backend, add_color_copies(originals, 2, seed=0), sea_raft)
    assert len(samples) == 6 and len(counted) == 2
    for original, first, second in (samples[:3], samples[3:]):
        for copy in (first, second):
            assert torch.equal(copy.reference_flow, original.reference_flow)
            assert copy.context is original.context
            assert not torch.equal(copy.latents, original.latents)
        assert not torch.equal(first.latents, second.latents)
    assert not torch.equal(samples[0].reference_flow, samples[3].reference_flow)
    assert torch.equal(samples[1].mask_latent, samples[0].mask_latent)
    assert torch.equal(samples[1].flow_weight_px, samples[0].flow_weight_px)
    assert samples[4].mask_latent is None
    misses = backend.cache.misses
    prepare_motion(backend, add_color_copies(originals, 2, seed=0), sea_raft)
    assert backend.cache.misses == misses
    drawn = Counter(choose_batch(samples, 1, 0, number)[0].name for number in range(12))
    assert set(drawn.values()) == {2} and len(drawn) == 6


def test_copies_in_other_colors_are_said_trained_on_and_resumed_bit_for_bit(backend, clip, caplog):
    caplog.set_level("INFO", "smrabooth")
    settings = MotionSettings(rank=2, mora_weight=0.0, color_copies=3)

    def cancel(info):
        if info.step == 2:
            raise KeyboardInterrupt

    whole = train_motion(backend, [clip], None, settings, short(steps=4), "whole")
    assert "Training on 1 clip and 3 copies in other colors." in caplog.text
    with pytest.raises(KeyboardInterrupt):
        train_motion(backend, [clip], None, settings, short(steps=4), "cut", on_step=cancel)
    resumed = train_motion(backend, [clip], None, settings, short(steps=4), "cut")
    weights, others = load_file(whole.path), load_file(resumed.path)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    alone = train_motion(backend, [clip], None, replace(settings, color_copies=0), short(steps=4), "whole")
    assert alone.path != whole.path and load_lora(whole.path).metadata.captions == ("a camera pans",)


def test_without_copies_a_run_is_called_as_before_there_were_any():
    names = collect_identity(MotionSettings()).keys()
    assert "color_copies" not in names
    assert collect_identity(MotionSettings(color_copies=2)).keys() - names == {"color_copies"}


def test_the_clip_that_is_held_out_has_no_copies(backend, clip, monkeypatch):
    jobs = []
    monkeypatch.setattr("smra_core.training.motion.run_job", lambda backend, job, on_step: jobs.append(job))
    settings, train = MotionSettings(rank=2, mora_weight=0.0, color_copies=2), short(held_out_every=1)
    train_motion(backend, several(clip), None, settings, train)
    assert [sample.name for sample in jobs[0].held_out] == ["wide"]
    assert [sample.name for sample in jobs[0].samples] == [
        "pan", "pan (colors 1)", "pan (colors 2)", "back", "back (colors 1)", "back (colors 2)",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="there is only one"):
        train_motion(backend, [clip], None, settings, train)
