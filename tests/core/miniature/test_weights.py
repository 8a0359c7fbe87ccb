import pytest
import torch
from make_miniature_golden import GOLDEN, golden
from safetensors.torch import load_file

from smra_core.encoders.dinov2 import load_dinov2
from smra_core.encoders.sea_raft import load_sea_raft
from smra_core.miniature.held_out_files import REFERENCES
from smra_core.miniature.model_files import MINIATURE_FILES
from smra_core.miniature.recipe.latent_space import encode_frames
from smra_core.miniature.recipe.train_dit import BLOCKS, FFN, HEAD_DIM, HEADS
from smra_core.miniature.recipe.train_flow import collect_pairs, measure_end_point_errors
from smra_core.miniature.recipe.train_patches import measure_matching
from smra_core.miniature.recipe.whole_clip_vae import decode_clip
from smra_core.miniature.weight_paths import DINOV2_FILE, SEA_RAFT_FILE, WEIGHTS
from smra_core.miniature.world.measure import measure
from smra_core.miniature.world.scenes import Scene, render
from smra_core.wan.flow_matching import add_noise, velocity_target
from smra_core.wan.hashed_text import HashedText
from smra_core.wan.latents import as_frames, denormalize

CPU = torch.device("cpu")
LARGEST = 30e6
UNSEEN = Scene(subject="ball", motion="zigzag", background="gray")


@pytest.fixture(scope="module")
def vae():
    return MINIATURE_FILES.load_codec(torch.float32, CPU).vae


def test_the_files_are_small_and_are_named_as_the_readme_says():
    files = sorted(WEIGHTS.glob("*.safetensors"))
    assert [file.stem for file in files] == [
        "dinov2_miniature", "sea_raft_miniature", "wan_miniature_t2v", "wan_miniature_vae",
    ]  # fmt: skip
    assert sum(file.stat().st_size for file in files) < LARGEST


def test_the_sizes_are_read_from_the_file():
    spec = MINIATURE_FILES.spec
    assert (spec.blocks, spec.dim, spec.ffn, spec.heads) == (BLOCKS, HEADS * HEAD_DIM, FFN, HEADS)


def test_a_held_out_subject_in_a_held_out_motion_passes_the_vae(vae):
    frames = render(UNSEEN).frames
    with torch.no_grad():
        pixels = decode_clip(vae, denormalize(encode_frames(vae, frames[None])))
    back = as_frames(pixels[0])
    assert ((back - frames) ** 2).mean() < 0.006  # 22 dB
    reading = measure(back)
    assert (reading.motion, reading.background) == ("zigzag", "gray")


@torch.no_grad()
def test_the_dit_believes_the_right_caption(vae):
    scene = Scene("square", "green", "plain", "navy", "left")
    x0 = encode_frames(vae, render(scene).frames[None])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.9])
    captions = [scene.prompt, Scene("square", "red", "plain", "black", "right").prompt]
    denoiser = MINIATURE_FILES.load_denoiser(torch.float32, CPU)
    right, wrong = (
        denoiser.velocity(add_noise(x0, noise, sigma), sigma, HashedText().encode([caption])).velocity
        for caption in captions
    )
    target = velocity_target(x0, noise)
    assert ((right - target) ** 2).mean() < 0.5 * ((wrong - target) ** 2).mean()


@pytest.mark.parametrize("scene", [UNSEEN, *REFERENCES.values()], ids=["ball", *REFERENCES])
def test_the_flow_net_sees_held_out_motions_and_the_reference_clips(scene):
    errors = measure_end_point_errors(load_sea_raft(SEA_RAFT_FILE), collect_pairs([render(scene)]))
    assert errors.on_sprite < 0.25 * errors.zero_on_sprite


def test_patch_features_tell_unseen_sprites_apart():
    sprites = 30
    assert measure_matching(load_dinov2(DINOV2_FILE), sprites) > 0.6


def test_the_standalone_code_gives_the_golden_outputs():
    expected = load_file(GOLDEN)
    for name, value in golden().items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4, msg=name)
