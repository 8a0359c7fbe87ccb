"""The translations as files: one set of nodes and inputs in three languages, readable by every front end."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LANGUAGES = {"zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7a3]"}
"""Folder of `locales` -> letters that only this language has, or Chinese and Japanese alone."""
SYNTAX = re.compile(r"[{}@|$]")
"""What the translator of ComfyUI's front end reads as its own syntax, not as text."""


def read(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))


def list_texts(entry) -> list[str]:
    """Return every text inside of an entry."""
    return (
        [entry] if isinstance(entry, str) else [text for part in entry.values() for text in list_texts(part)]
    )


def list_keys(entry: dict) -> dict:
    return {key: list_keys(part) if isinstance(part, dict) else None for key, part in entry.items()}


def test_the_languages_are_those_of_the_folder():
    assert {folder.name for folder in (ROOT / "locales").iterdir()} == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_the_same_nodes_inputs_and_outputs(language):
    assert list_keys(read(language)) == list_keys(read("zh"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_empty_or_holds_syntax_of_the_front_end(language):
    texts = list_texts(read(language))
    assert all(text.strip() == text != "" and not SYNTAX.search(text) for text in texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_descriptions_and_tooltips_are_in_their_language(language):
    for node in read(language).values():
        parts = [node, *node.get("inputs", {}).values(), *node.get("outputs", {}).values()]
        texts = [part[key] for part in parts for key in ("description", "tooltip") if key in part]
        assert all(re.search(LANGUAGES[language], text) for text in texts)
