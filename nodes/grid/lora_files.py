"""LoRA files that the lines of a grid's lists stand for."""

from collections.abc import Iterator
from pathlib import Path

from ...smra_core.evaluation.grid_cells import NO_LORA, TRAINED_HERE, parse_loras
from ...smra_core.lora.expert_pair import find_pair
from ..patching.chosen_lora import read_file_state


def find_files(name: str, is_pair: bool) -> list[Path]:
    """Return the files that the loader of a cell reads for a LoRA: for a pair of experts, those of both.

    There are none for no LoRA and for one from a training node. Raises ValueError where the file of an expert
    is not there.
    """
    import folder_paths

    if name in (NO_LORA, TRAINED_HERE):
        return []
    names = find_pair(name, folder_paths.get_filename_list("loras")) if is_pair else (name,)
    return [Path(folder_paths.get_full_path_or_raise("loras", each)) for each in dict.fromkeys(names)]


def read_list_state(text: str) -> str:
    """Return a text that changes with the files of a list, and with those of the other expert."""
    return ", ".join(f"{file} {read_file_state(file)}" for file in _list_names(text))


def _list_names(text: str) -> Iterator[str]:
    import folder_paths

    known = folder_paths.get_filename_list("loras")
    for lora in parse_loras(text, [TRAINED_HERE, *known]):
        yield lora.name
        try:
            yield from find_pair(lora.name, known)
        except ValueError:  # refused if the grid is of a pair; one model needs no other file
            continue
