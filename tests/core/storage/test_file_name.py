import pytest

from smra_core.storage.file_name import make_file_name


@pytest.mark.parametrize("text, name", [
    ("my_dog", "my_dog"), ("all-layers", "all-layers"), (" my dog ", "my_dog"), ("a/b", "a_b"),
    ("../../../escape", "_________escape"), ("a\\b:c*?", "a_b_c__"), ("v1.2", "v1_2"), ("犬", "犬"),
    ("cafe\u0301", "caf\u00e9"), ("x" * 300, "x" * 64), ("~/.ssh", "___ssh"), ("a\x00b\n", "a_b"),
])  # fmt: skip
def test_a_name_keeps_letters_and_digits_and_leads_nowhere(text, name):
    assert make_file_name(text) == name
    assert make_file_name(name) == name


@pytest.mark.parametrize("text", ["con", "AUX", "Nul", "com1", "LPT9"])
def test_a_name_of_a_device_of_windows_is_no_longer_one(text):
    assert make_file_name(text) == f"{text}_"
    assert make_file_name("concert") == "concert"


def test_long_names_in_wide_letters_fit_a_file_system():
    assert len(make_file_name("𐌰" * 64).encode()) == 180


@pytest.mark.parametrize("text", ["", ".", "..", "/", "-", "___", "-_-"])
def test_a_name_without_letters_is_refused(text):
    with pytest.raises(ValueError, match="has no letter or digit"):
        make_file_name(text)
