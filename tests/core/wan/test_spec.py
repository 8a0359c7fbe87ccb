import pytest

from smra_core.wan.spec import (
    LATENT_SPACES,
    LATENTS_21,
    LATENTS_22,
    SPECS,
    WAN_1_3B,
    WAN_5B,
    Role,
    find_spec,
    frames_of_latent,
    latent_frames,
    parse_linear,
    pixel_frames,
    token_grid,
)


def test_frames_and_latents_are_inverse():
    assert [latent_frames(frames) for frames in (1, 5, 49, 81)] == [1, 2, 13, 21]
    assert all(latent_frames(pixel_frames(latents)) == latents for latents in range(1, 30))


@pytest.mark.parametrize("frames", [0, -3, 2, 50])
def test_frames_that_are_not_4n_plus_1_are_refused_with_the_nearest(frames):
    with pytest.raises(ValueError, match="4n\\+1"):
        latent_frames(frames)


def test_the_latents_of_a_clip_partition_its_frames():
    covered = [frame for latent in range(13) for frame in frames_of_latent(latent)]
    assert covered == list(range(49))


def test_token_grid_of_the_papers_sizes():
    assert token_grid((16, 1, 64, 64)) == (1, 32, 32)
    assert token_grid((1, 16, 13, 40, 72)) == (13, 20, 36)


def test_sizes_off_the_16_px_grid_are_refused_with_the_nearest():
    LATENTS_21.check_size(576, 320)
    with pytest.raises(ValueError, match="multiple of 16. Use 496x528"):
        LATENTS_21.check_size(500, 530)


def test_ti2v_5b_works_on_a_grid_of_32_px():
    LATENTS_22.check_size(1280, 704)
    with pytest.raises(ValueError, match="multiple of 32. Use 1280x704"):
        LATENTS_22.check_size(1280, 720)


def test_latents_and_tokens_of_published_sizes():
    assert LATENTS_21.latent_shape(49, 576, 320) == (16, 13, 40, 72)
    assert LATENTS_21.count_tokens(49, 576, 320) == 9360
    # 121 frames are 31 latents, 704 / 32 = 22 and 1280 / 32 = 40 tokens along the sides.
    assert LATENTS_22.latent_shape(121, 1280, 704) == (48, 31, 44, 80)
    assert LATENTS_22.count_tokens(121, 1280, 704) == 31 * 22 * 40


def test_every_channel_of_a_latent_space_has_its_statistics():
    for channels, space in LATENT_SPACES.items():
        assert channels == space.channels == len(space.mean) == len(space.std)


def test_a_model_is_known_by_its_sizes_and_its_latents():
    for spec in SPECS:
        assert find_spec(spec.blocks, spec.dim, spec.ffn, spec.heads, spec.latents) is spec
        assert spec.input_channels == spec.latents.channels
        assert spec.as_variant("image to video", 100).input_channels == 100
    assert find_spec(30, 3072, 14336, 24, LATENTS_21).name == "Wan2.1-T2V of 30 blocks, width 3072"
    assert find_spec(2, 8, 12, 1, LATENTS_22).latents.fps == WAN_5B.latents.fps == 24


def test_linear_names_parse_and_foreign_ones_are_refused():
    assert parse_linear("blocks.12.cross_attn.o") == (12, "cross_attn.o", Role.O)
    assert parse_linear("blocks.0.ffn.2").role is Role.FFN_2
    for foreign in ("vace_blocks.0.self_attn.q", "blocks.0.norm1", "head.head", "xblocks.1.ffn.0"):
        with pytest.raises(ValueError, match="not a linear"):
            parse_linear(foreign)


def test_shapes_of_the_1_3b_linears():
    assert len(WAN_1_3B.linear_names()) == 300
    assert WAN_1_3B.linear_shape("blocks.29.ffn.0") == (8960, 1536)
    assert WAN_1_3B.linear_shape("blocks.29.ffn.2") == (1536, 8960)
    assert WAN_1_3B.linear_shape("blocks.0.self_attn.q") == (1536, 1536)
