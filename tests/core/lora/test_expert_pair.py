import pytest

from smra_core.lora.expert_pair import ExpertFiles, find_expert, find_pair

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
