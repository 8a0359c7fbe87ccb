import pytest

from smra_core.lora.expert_pair import ExpertFiles, find_expert, find_pair, mark_expert

PAIRS = [
    ("dog_high_noise.safetensors", "dog_low_noise.safetensors"),  # ai-toolkit, ours
    ("wan22_dog-high.safetensors", "wan22_dog-low.safetensors"),
    ("DogHighNoise.safetensors", "DogLowNoise.safetensors"),
    ("walk_HighNoise_v2.safetensors", "walk_LowNoise_v2.safetensors"),
    ("WALK_HIGH.safetensors", "WALK_LOW.safetensors"),
    ("high_noise/adapter_model.safetensors", "low_noise/adapter_model.safetensors"),  # diffusion-pipe
    (
        "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors",
        "wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise.safetensors",
    ),
    ("high_noise_model.safetensors", "low_noise_model.safetensors"),
    ("dog high noise.safetensors", "dog low noise.safetensors"),
]


@pytest.mark.parametrize("high, low", PAIRS)
def test_both_files_of_a_pair_are_found_from_either(high, low):
    names = ["other_high_noise.safetensors", low, "dog.safetensors", high]
    assert find_expert(high) == "high" and find_expert(low) == "low"
    assert find_pair(high, names) == find_pair(low, names) == ExpertFiles(high, low)


@pytest.mark.parametrize(
    "name",
    [
        "dog.safetensors",
        "highlander.safetensors",
        "slow_walk.safetensors",
        "flow.safetensors",
        "Lowell.safetensors",
    ],
)
def test_a_name_that_marks_no_expert_is_one_file_for_both(name):
    assert find_expert(name) is None
    assert find_pair(name, [name]) == ExpertFiles(name, name)


def test_a_name_that_marks_both_experts_is_one_file_for_both():
    assert find_pair("high_and_low.safetensors", []) == (
        "high_and_low.safetensors",
        "high_and_low.safetensors",
    )


def test_case_of_the_other_file_does_not_matter():
    assert (
        find_pair("dog_high_noise.safetensors", ["Dog_LOW_noise.safetensors"]).low
        == "Dog_LOW_noise.safetensors"
    )


def test_a_missing_half_is_named():
    with pytest.raises(ValueError, match="high-noise expert.*dog_low_noise.safetensors for the other"):
        find_pair("dog_high_noise.safetensors", ["dog_high_noise.safetensors"])


HIGH, LOW = "walk_high_noise_400_0123abcd.safetensors", "walk_low_noise_600_89ef4567.safetensors"


def test_the_files_of_two_training_nodes_are_a_pair_whatever_their_steps_and_runs():
    names = [HIGH, LOW, "run_low_noise_600_89ef4567.safetensors", "walk_low_noise_600_89ef456.safetensors"]
    assert find_pair(HIGH, names) == find_pair(LOW, names) == ExpertFiles(HIGH, LOW)


def test_of_several_files_of_the_other_expert_none_is_guessed():
    other = "walk_low_noise_800_00000000.safetensors"
    with pytest.raises(ValueError, match=f"2 files may be its other one: {LOW}, {other}. Rename the right"):
        find_pair(HIGH, [HIGH, LOW, other])
    exact = "walk_low_noise_400_0123abcd.safetensors"
    assert find_pair(HIGH, [HIGH, LOW, other, exact]).low == exact


def test_a_file_of_another_trainer_has_a_partner_of_its_very_name_only():
    with pytest.raises(ValueError, match="is not there"):
        find_pair("walk_high_noise.safetensors", ["walk_high_noise.safetensors", LOW])


@pytest.mark.parametrize(
    "name, expert, marked",
    [
        ("walk", None, "walk"),
        ("walk", "high", "walk_high_noise"),
        ("slow_walk", "low", "slow_walk_low_noise"),
        ("walk_HighNoise", "high", "walk_HighNoise"),
    ],
)
def test_a_name_is_marked_once(name, expert, marked):
    assert mark_expert(name, expert) == marked
    assert expert is None or find_expert(f"{marked}_400_0123abcd.safetensors") == expert


def test_a_name_of_the_other_expert_is_refused():
    with pytest.raises(ValueError, match="'walk_low' is of the low-noise expert"):
        mark_expert("walk_low", "high")
