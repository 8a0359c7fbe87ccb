"""What ComfyUI serves as the pack's translations, compared with the nodes that it has."""

import re

import pytest

LANGUAGES = ("zh", "ja", "ko")


@pytest.fixture(scope="module")
def info(server):
    return {name: node for name, node in server.get("/object_info").items() if name.startswith("SMRA")}


@pytest.fixture(scope="module", params=LANGUAGES)
def translated(server, request):
    return server.get("/i18n")[request.param]["nodeDefs"]


def list_inputs(node: dict) -> dict:
    return {
        name: options
        for part in ("required", "optional")
        for name, options in node["input"].get(part, {}).items()
    }


def list_choices(node: dict) -> set[str]:
    """Return the values of the node's lists of choices that are the same on every machine."""
    found = set()
    for kind, *options in list_inputs(node).values():
        found.update(kind if isinstance(kind, list) else (options[0].get("options", []) if options else []))
    return {choice for choice in found if isinstance(choice, str)}


def test_every_node_is_translated(info, translated):
    missing = sorted(set(info) - set(translated))
    assert not missing, f"locales/*/nodeDefs.json lacks {missing}"


def test_every_input_has_a_translated_name_and_tooltip(info, translated):
    for name, node in translated.items():
        given = {key for key, words in node.get("inputs", {}).items() if words["name"] and words["tooltip"]}
        assert given == set(list_inputs(info[name])), name


def test_every_output_has_a_translated_name_and_a_tooltip_where_the_node_has_one(info, translated):
    for name, node in translated.items():
        given = [bool(words.get("tooltip")) for words in node.get("outputs", {}).values()]
        tooltips = info[name].get("output_tooltips") or [None] * len(info[name]["output"])
        assert given == [bool(tooltip) for tooltip in tooltips], name


def test_tooltips_keep_the_numbers_and_quoted_choices_of_the_english_ones(info, translated):
    """A tooltip that changed in English and not here gives wrong numbers: this catches the plainest cases."""
    for name, node in translated.items():
        choices = list_choices(info[name])
        for key, words in node.get("inputs", {}).items():
            english = list_inputs(info[name])[key][1]["tooltip"]
            for number in re.findall(r"(?<![\w.@:-])\d+(?:\.\d+)?(?![\w.-])", english):
                assert number in words["tooltip"], (name, key, number)
            for choice in set(re.findall(r"'([^']+)'", english)) & choices:
                assert f"'{choice}'" in words["tooltip"], (name, key, choice)
