import pytest

from smra_core.data.frame_rate import (
    Timing,
    check_frame_rate,
    choose_frame_rate,
    describe_frame_rate,
    measure_timing,
    pick_frames,
)


def pick(times, fps=16.0, count=100, start=0, stride=1):
    """Numbers of the frames that are taken from a clip with these times in seconds."""
    timing = measure_timing(times, None)
    choice = choose_frame_rate(timing, fps)
    return list(pick_frames(zip(times, range(len(times)), strict=True), choice, timing, count, start, stride))


def steady(fps, seconds=1.0):
    return [number / fps for number in range(round(fps * seconds))]


def test_sixteen_frames_a_second_are_taken_one_by_one():
    assert pick(steady(16)) == list(range(16))
    assert pick(steady(16), start=3, stride=2, count=4) == [3, 5, 7, 9]


@pytest.mark.parametrize(
    "fps, numbers",
    [
        (24, [0, 1, 3, 4, 6, 7, 9]),  # times 0, 1.5, 3 …; the earlier of two that are equally near
        (25, [0, 2, 3, 5, 6, 8, 9]),  # times 0, 1.56, 3.13, 4.69, 6.25, 7.81, 9.38
        (30, [0, 2, 4, 6, 7, 9, 11]),  # times 0, 1.875, 3.75, 5.625, 7.5, 9.375, 11.25
        (60, [0, 4, 7, 11, 15, 19, 22]),  # times 0, 3.75, 7.5, 11.25, 15, 18.75, 22.5
        (240, [0, 15, 30, 45, 60, 75, 90]),
    ],
)
def test_faster_clips_give_the_frame_nearest_to_every_sixteenth_of_a_second(fps, numbers):
    assert pick(steady(fps), count=7) == numbers


def test_start_counts_the_clips_frames_and_stride_comes_on_top():
    assert pick(steady(32, 2), start=5, stride=3, count=4) == [5, 11, 17, 23]


def test_times_rounded_to_milliseconds_change_nothing():
    rounded = [round(time, 3) for time in steady(16, 4)]
    assert pick(rounded) == list(range(64))
    assert pick([round(time, 3) for time in steady(60, 4)]) == pick(steady(60, 4))


def test_a_clip_that_starts_late_is_read_from_its_first_frame():
    assert pick([5 + time for time in steady(32)], count=4) == [0, 2, 4, 6]


@pytest.mark.parametrize("fps", [15.5, 16.5, 50 / 3])
def test_within_five_percent_no_frame_is_left_out(fps):
    assert pick(steady(fps, 3)) == list(range(round(fps * 3)))


@pytest.mark.parametrize("fps", [8, 10, 12, 15])
def test_frames_of_slower_clips_are_not_repeated(fps):
    assert pick(steady(fps)) == list(range(fps))


def test_a_variable_rate_is_read_by_time():
    times = [0, 1 / 32, 2 / 32, 3 / 32, 4 / 32, 6 / 32, 8 / 32, 10 / 32, 11 / 32, 12 / 32]
    assert pick(times) == [0, 2, 4, 5, 6, 7, 9]


def test_frames_as_they_are_are_taken_one_by_one_at_any_rate():
    assert pick(steady(60), fps=None, count=5, stride=2) == [0, 2, 4, 6, 8]


def test_no_more_is_read_than_is_needed():
    def frames():
        yield from ((number / 60, number) for number in range(20))
        raise AssertionError("read on")

    timing = Timing(60, 1 / 60, 1 / 60)
    assert list(pick_frames(frames(), choose_frame_rate(timing, 16), timing, 5)) == [0, 4, 7, 11, 15]


def describe(timing, fps=16.0, stride=1, model_fps=16.0):
    return describe_frame_rate(timing, choose_frame_rate(timing, fps), stride, model_fps)


def test_the_rate_and_what_it_means_are_told():
    assert describe(Timing(60, 1 / 60, 1 / 60)) == ["60 fps clip: every 3.75th frame by time, 16 fps"]
    assert describe(Timing(60, 1 / 60, 1 / 60), fps=None) == [
        "60 fps clip: frames are taken one by one",
        "WAN's videos have 16 fps: the motion becomes 3.75 times slower",
    ]
    assert (
        describe(Timing(8, 1 / 8, 1 / 8))[1] == "WAN's videos have 16 fps: the motion becomes 2 times faster"
    )
    assert "not known; 16 fps is assumed" in describe(Timing(16, is_assumed=True))[0]
    assert describe(Timing(29.97, 0.02, 0.1)) == [
        "variable frame rate, 29.97 fps on average: frames are 20 to 100 ms apart and taken by their times, "
        "16 fps"
    ]


def test_the_speed_is_that_in_the_models_videos():
    assert describe(Timing(16, 1 / 16, 1 / 16), fps=24, model_fps=24) == [
        "16 fps clip: frames are taken one by one",
        "WAN's videos have 24 fps: the motion becomes 1.5 times faster",
    ]
    assert describe(Timing(60, 1 / 60, 1 / 60), fps=24, model_fps=24) == [
        "60 fps clip: every 2.5th frame by time, 24 fps"
    ]


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1001])
def test_impossible_rates_are_refused(fps):
    with pytest.raises(ValueError, match="give more than 0 and at most 1000 frames per second"):
        check_frame_rate(fps)


def test_equal_times_and_unknown_times_do_not_count():
    assert measure_timing([None, 0.0, 0.0, 0.5, None, 1.0], None) == Timing(2, 0.5, 0.5)
    assert measure_timing([None, None], 24.0) == Timing(24)
    assert measure_timing([0.0], None).is_assumed
