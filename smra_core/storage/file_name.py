"""The rule for names that become part of a file or folder name."""

import unicodedata

_LONGEST, _MOST_BYTES = 64, 180
"""Letters, and bytes in UTF-8, that are kept of a name: file systems allow 255 bytes, and we add to it."""

_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
"""Names that Windows gives to devices, with any ending and in any case."""


def make_file_name(text: str) -> str:
    """Return a name that is safe in a path: letters, digits, `-` and `_`, at most 64 of them.

    Whatever else stands in the text, such as a slash or a dot, becomes `_`, so that a name never leads to
    another folder. A name of one of Windows's devices, such as `aux`, gets a `_` at its end. Letters with
    accents are the same in both normal forms of Unicode. Raises ValueError when no letter or digit is left.
    """
    composed = unicodedata.normalize("NFC", text.strip())
    cleaned = "".join(c if c.isalnum() or c in "-_" else "_" for c in composed)[:_LONGEST]
    while len(cleaned.encode()) > _MOST_BYTES:
        cleaned = cleaned[:-1]
    if not any(c.isalnum() for c in cleaned):
        raise ValueError(f"The name {text!r} has no letter or digit. Give one, such as my_dog.")
    return f"{cleaned}_" if cleaned.lower() in _DEVICES else cleaned
