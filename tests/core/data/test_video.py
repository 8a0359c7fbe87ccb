import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from smra_core.data.video import read_video, trim_video, write_video

SIDE, FRAMES = 32, 9
SIZE = (SIDE, SIDE)
SIXTEEN = "16 fps clip: frames are taken one by one"


def numbered(count=FRAMES, height=SIDE, width=SIDE):
    """Gray frames `F 3 H W`, each 16/255 brighter than the one before."""
    levels = (32 + 16 * torch.arange(count)) / 255
    return levels[:, None, None, None].expand(count, 3, height, width)


def numbers(video):
    return [round((frame.mean().item() * 255 - 32) / 16) for frame in video.frames]


@pytest.fixture
def clip(tmp_path):
    write_video(tmp_path / "clip.mp4", numbered(), 16)
    return tmp_path / "clip.mp4"


def encode(path, frames, times, codec="libx264", pixel_aspect=None, size=SIZE):
    """A file whose frames have these times in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for picture, time in zip(frames, times, strict=True):
            array = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_what_is_written_is_read_back_in_order(clip):
    video = read_video(clip, SIZE, FRAMES)
    assert video.frames.shape == (FRAMES, 3, SIDE, SIDE) and video.fps == 16 and video.notes == [SIXTEEN]
    assert numbers(video) == list(range(FRAMES))
    assert (video.frames - numbered()).abs().max() < 4 / 255


def test_start_and_stride_choose_frames_and_the_rest_is_told(clip):
    video = read_video(clip, SIZE, 3, start=1, stride=2)
    assert numbers(video) == [1, 3, 5] and video.fps == 8
    assert video.notes == [
        SIXTEEN,
        "stride 2: of these, every 2nd frame is used",
        "WAN's videos have 16 fps: the motion becomes 2 times faster",
        "3 frames after number 5 are not used",
    ]


def test_frames_are_cropped_to_the_wanted_shape_and_that_is_told_once(tmp_path):
    wide = numbered(3, 32, 64).clone()
    wide[..., :16], wide[..., 48:] = 0, 1  # outside of the central square
    write_video(tmp_path / "wide.mp4", wide, 16)
    video = read_video(tmp_path / "wide.mp4", (16, 16), 3)
    assert numbers(video) == [0, 1, 2] and video.frames[0, :, :, 1:-1].std() < 0.02
    assert video.notes == ["64x32 is cropped to its central 32x32", SIXTEEN]


def test_pixels_that_are_not_square_are_honored(tmp_path):
    half = torch.zeros(1, 3, 32, 32)
    half[..., 8:24] = 1
    encode(tmp_path / "anamorphic.mp4", half, [0], pixel_aspect=Fraction(2), size=(32, 32))
    video = read_video(tmp_path / "anamorphic.mp4", (16, 16), 1)
    assert video.notes[0] == "32x32 is cropped to its central 16x32"
    assert video.frames.mean() > 0.9


IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
TURNS = {
    "right": struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30),
    "left": struct.pack(">9i", 0, -1 << 16, 0, 1 << 16, 0, 0, 0, 0, 1 << 30),
    "around": struct.pack(">9i", -1 << 16, 0, 0, 0, -1 << 16, 0, 0, 0, 1 << 30),
}
"""Display matrices, row by row, as a phone writes them into the track's header."""


@pytest.mark.parametrize("turn, size, bright", [
    ("right", (32, 64), "bottom"), ("left", (32, 64), "top"), ("around", (64, 32), "left"),
])  # fmt: skip
def test_a_clip_is_turned_as_the_phone_was_held(tmp_path, turn, size, bright):
    lying = torch.zeros(1, 3, 32, 64)
    lying[..., 32:] = 1  # bright on the right
    write_video(tmp_path / "phone.mp4", lying, 16)
    content = (tmp_path / "phone.mp4").read_bytes()
    track = content.index(b"tkhd")
    matrix = content.index(IDENTITY, track)
    (tmp_path / "phone.mp4").write_bytes(content[:matrix] + TURNS[turn] + content[matrix + len(IDENTITY) :])
    (frame,), _, notes, _ = read_video(tmp_path / "phone.mp4", size, 1)
    assert notes == [SIXTEEN]
    width, height = size
    halves = {
        "top": frame[:, : height // 2], "bottom": frame[:, height // 2 :],
        "left": frame[..., : width // 2], "right": frame[..., width // 2 :],
    }  # fmt: skip
    assert halves[bright].mean() > 0.95


def test_a_variable_frame_rate_is_told_and_frames_are_taken_as_stored(tmp_path):
    encode(tmp_path / "phone.mp4", numbered(5), [0, 40, 80, 200, 240])
    video = read_video(tmp_path / "phone.mp4", SIZE, 5)
    assert numbers(video) == [0, 1, 2, 3, 4]
    assert video.notes == [
        "variable frame rate, 16.67 fps on average: frames are 40 to 120 ms apart and used as stored"
    ]


def test_rounded_times_of_a_constant_rate_are_not_called_variable(tmp_path):
    encode(tmp_path / "steady.mkv", numbered(5), [0, 33, 67, 100, 133])
    assert not [note for note in read_video(tmp_path / "steady.mkv", SIZE, 5).notes if "variable" in note]


def test_a_start_after_the_end_is_named(clip):
    with pytest.raises(ValueError, match="clip.mp4 has 9 readable frames, none from number 9 on. Choose an"):
        read_video(clip, SIZE, 5, start=9)


@pytest.mark.parametrize("content", [b"", b"no video", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"])
def test_a_file_that_is_no_video_is_named(tmp_path, content):
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(ValueError, match="bad.mp4 cannot be read as a video .*Convert it to mp4"):
        read_video(tmp_path / "bad.mp4", SIZE, 5)


def test_a_video_of_another_kind_is_told_which_are_read(tmp_path):
    write_video(tmp_path / "clip.mp4", numbered(), 16)
    with av.open(str(tmp_path / "clip.mp4")) as source, av.open(str(tmp_path / "clip.flv"), "w") as target:
        stream = target.add_stream("flv1", rate=16)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for frame in source.decode(video=0):
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    with pytest.raises(
        ValueError, match=r"clip.flv cannot be read as a video \(it is of another kind\).*\.mp4, .*GIF"
    ):
        read_video(tmp_path / "clip.flv", SIZE, 5)


def test_a_file_with_sound_alone_is_named(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        silence.sample_rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="song.mp4 has no video stream"):
        read_video(tmp_path / "song.mp4", SIZE, 5)


def test_a_file_cut_short_gives_what_came_before(tmp_path):
    noise = torch.rand(30, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    encode(tmp_path / "cut.mkv", noise, [40 * i for i in range(30)])
    whole = (tmp_path / "cut.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    video = read_video(tmp_path / "cut.mkv", SIZE, 30)
    assert 0 < len(video.frames) < 30


@pytest.mark.parametrize("wanted", [dict(frames=0), dict(start=-1), dict(stride=0)])
def test_impossible_choices_are_refused(clip, wanted):
    with pytest.raises(ValueError, match="needs frames >= 1, start >= 0, stride >= 1; got"):
        read_video(clip, SIZE, **{"frames": 5, **wanted})


def test_a_clip_is_brought_to_sixteen_frames_a_second_by_time(tmp_path):
    write_video(tmp_path / "fast.mp4", numbered(12), 32)
    video = read_video(tmp_path / "fast.mp4", SIZE, 5, fps=16)
    assert numbers(video) == [0, 2, 4, 6, 8] and video.fps == 16
    assert video.notes[0] == "32 fps clip: every 2nd frame by time, 16 fps"
    video = read_video(tmp_path / "fast.mp4", SIZE, 3, start=1, stride=2, fps=16)
    assert numbers(video) == [1, 5, 9] and video.fps == 8


def test_a_clip_of_sixteen_frames_a_second_is_the_same_bit_by_bit(clip):
    for options in ({}, dict(start=2), dict(stride=2)):
        as_stored = read_video(clip, SIZE, FRAMES, **options)
        by_time = read_video(clip, SIZE, FRAMES, fps=16, **options)
        assert torch.equal(as_stored.frames, by_time.frames) and as_stored.fps == by_time.fps


def test_a_variable_rate_is_read_by_its_times(tmp_path):
    encode(tmp_path / "phone.mp4", numbered(7), [0, 31, 62, 125, 187, 219, 250])
    assert numbers(read_video(tmp_path / "phone.mp4", SIZE, 5, fps=16)) == [0, 2, 3, 4, 6]


def test_an_enlarged_clip_is_told(clip):
    notes = read_video(clip, (64, 64), 5).notes
    assert notes[0] == "32x32 is enlarged 2 times to 64x64, which adds no detail"


def encode_deep(path, code_value, transfer, primaries=9):
    """Write 10-bit frames of one color (R'G'B' from 0 to 1), tagged as BT.2020 with a transfer."""
    limited, full = 1, 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=16)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv444p10le"
        tags = dict(color_trc=transfer, color_primaries=primaries, colorspace=9, color_range=limited)
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        values = np.empty((SIDE, SIDE, 3), np.uint16)
        values[:] = np.round(np.array(code_value) * 65535)
        frame = av.VideoFrame.from_ndarray(values, format="rgb48le").reformat(
            format="yuv444p10le", dst_colorspace=9, src_color_range=full, dst_color_range=limited
        )
        for name, value in tags.items():
            setattr(frame, name, value)
        for _ in range(5):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


REFERENCE_WHITE = 244
"""sRGB of white paper after mapping: light 1 falls to 1 - e^-1 / 4 = 0.908."""


@pytest.mark.parametrize(
    "transfer, name, signal, level",
    [
        (16, "PQ", 0.5807, REFERENCE_WHITE),  # 203 candelas per square meter
        (18, "HLG", 0.75, REFERENCE_WHITE),
        (16, "PQ", 0.4105, 118),  # 36.5 candelas: light 0.18 is below the knee and stays; sRGB 0.461
        (16, "PQ", 0.0, 0),
        (18, "HLG", 1.0, 255),
    ],
)
def test_hdr_is_mapped_to_ordinary_brightness_and_told(tmp_path, transfer, name, signal, level):
    encode_deep(tmp_path / "hdr.mkv", [signal] * 3, transfer)
    video = read_video(tmp_path / "hdr.mkv", SIZE, 5)
    assert (video.frames * 255).round().unique().tolist() == pytest.approx([level], abs=1)
    assert f"HDR video ({name}), its brightness is mapped to ordinary video" in video.notes


def test_wide_hdr_colors_keep_their_hue(tmp_path):
    # BT.2020 gray stays gray; a red inside BT.709 becomes more saturated numbers, as 709 is narrower.
    encode_deep(tmp_path / "hdr.mkv", [0.45, 0.35, 0.33], 16)
    red, green, blue = read_video(tmp_path / "hdr.mkv", SIZE, 1).frames[0, :, 0, 0].tolist()
    encode_deep(tmp_path / "narrow.mkv", [0.45, 0.35, 0.33], 16, primaries=1)
    narrow = read_video(tmp_path / "narrow.mkv", SIZE, 1).frames[0, :, 0, 0].tolist()
    assert red > narrow[0] and green < narrow[1] and red > green > blue > 0


def test_ten_bits_alone_are_not_hdr(tmp_path):
    encode_deep(tmp_path / "deep.mkv", [0.5] * 3, 1)
    video = read_video(tmp_path / "deep.mkv", SIZE, 5)
    assert video.notes == [SIXTEEN] and video.frames.mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "codec, pixels, tag, black, white",
    [
        ("ffv1", "yuv420p", 1, 16, 235),
        ("ffv1", "yuv420p", 2, 0, 255),
        ("mjpeg", "yuvj420p", 2, 0, 255),
        ("libx264", "yuv420p", 2, 0, 255),
    ],
)
def test_limited_and_full_range_mean_the_same_black_and_white(tmp_path, codec, pixels, tag, black, white):
    with av.open(str(tmp_path / "range.mkv"), "w") as container:
        stream = container.add_stream(codec, rate=16)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, pixels
        stream.codec_context.color_range = tag
        frame = av.VideoFrame(SIDE, SIDE, pixels)
        frame.color_range, half = tag, SIDE // 2
        luma = np.full((SIDE, frame.planes[0].line_size), black, np.uint8)
        luma[:, half:] = white
        frame.planes[0].update(luma.tobytes())
        for plane in frame.planes[1:]:
            plane.update(bytes([128]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (picture,) = read_video(tmp_path / "range.mkv", SIZE, 1).frames
    assert picture[..., : half - 2].max() < 0.02 and picture[..., half + 2 :].min() > 0.98


def test_transparency_of_a_video_is_told(tmp_path):
    with av.open(str(tmp_path / "alpha.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=16)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "bgra"
        array = np.full((SIDE, SIDE, 4), 128, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="bgra")))
        container.mux(stream.encode())
    assert "its transparency is not used" in read_video(tmp_path / "alpha.mkv", SIZE, 1).notes


def test_interlaced_video_is_told(tmp_path):
    with av.open(str(tmp_path / "tv.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.options = {"x264-params": "tff=1"}
        for picture in numbered(5):
            array = np.ascontiguousarray((picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    assert any("interlaced" in note for note in read_video(tmp_path / "tv.mkv", SIZE, 5).notes)


def attach_cover(path, with_video):
    """Write an mp4 whose first stream is a white cover picture."""
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 48, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        streams = [(cover, 255, 1)]
        if with_video:
            video = container.add_stream("libx264", rate=16)
            video.width, video.height, video.pix_fmt = SIDE, SIDE, "yuv420p"
            streams.append((video, 60, 5))
        container.start_encoding()
        for stream, level, count in streams:
            array = np.full((stream.height, stream.width, 3), level, np.uint8)
            for _ in range(count):
                frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=stream.pix_fmt)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def test_a_cover_picture_is_not_the_clip(tmp_path):
    attach_cover(tmp_path / "clip.mp4", with_video=True)
    video = read_video(tmp_path / "clip.mp4", SIZE, 5)
    assert len(video.frames) == 5 and video.frames.mean().item() == pytest.approx(60 / 255, abs=0.02)
    attach_cover(tmp_path / "song.mp4", with_video=False)
    with pytest.raises(ValueError, match="song.mp4 has only a cover picture. Give a video file"):
        read_video(tmp_path / "song.mp4", SIZE, 5)


def test_trimming_keeps_four_n_plus_one_frames_and_tells(clip):
    video = read_video(clip, SIZE, 7)
    trimmed = trim_video(video, 49)
    assert len(trimmed.frames) == 5 and numbers(trimmed) == [0, 1, 2, 3, 4]
    assert trimmed.notes[-1] == "49 frames were asked for, 7 are there, 5 are used (WAN needs 4n+1)"
    assert trim_video(read_video(clip, SIZE, 9), 9).notes == [SIXTEEN]


@pytest.mark.parametrize(
    "frames, fps, message",
    [
        (torch.zeros(2, 32, 32), 16, r"shape \(2, 32, 32\); give \(F, 3, H, W\)"),
        (torch.zeros(0, 3, 32, 32), 16, "F >= 1"),
        (torch.zeros(1, 3, 33, 32), 16, "32x33; mp4 needs even sides. Use 32x32"),
        (torch.full((1, 3, 32, 32), 255.0), 16, r"lie in \[255, 255\]; give \[0, 1\]"),
        (torch.full((1, 3, 32, 32), float("nan")), 16, r"give \[0, 1\]"),
        (torch.zeros(1, 3, 32, 32), 0, "frame rate .* is 0"),
    ],
)
def test_frames_that_cannot_be_written_are_refused_and_leave_no_file(tmp_path, frames, fps, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "out.mp4", frames, fps)
    assert list(tmp_path.iterdir()) == []
