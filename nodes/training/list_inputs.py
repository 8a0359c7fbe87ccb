"""Inputs of a node that takes lists: ComfyUI hands it every input as a list, a single value as one of one."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def take_single_values(inputs: Mapping[str, Sequence[Any]], lists: Collection[str]) -> dict[str, Any]:
    """Return the inputs with single values in place of lists of one, but for those named in `lists`.

    Raises ValueError, naming the input, when another one is a list of several.
    """
    several = [name for name, values in inputs.items() if name not in lists and len(values) != 1]
    if several:
        raise ValueError(
            f"{several[0]} is a list of {len(inputs[several[0]])}, and this node takes one. Only "
            f"{', '.join(lists)} may be lists, of several clips or batches."
        )
    return {name: values if name in lists else values[0] for name, values in inputs.items()}
