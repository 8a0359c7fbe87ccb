"""Find the SEA-RAFT net that a weight file holds, and complete the names in it.

Files that are read: the authors' raw .pth, the hub's .safetensors (which lack one of the two names of a
shared norm), ptlflow's Lightning .ckpt, names with the prefix `module.`, and our own miniature (its sizes are
in the metadata).
"""

import json
import re
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..storage.weight_file import WeightFile
from .sea_raft_config import SEA_RAFT_M, SEA_RAFT_S, SeaRaftConfig

CONFIG_KEY = "sea_raft_config"
"""Metadata entry with the sizes, as JSON, of a net that was not published."""
_FIRST_WEIGHT = "flow_head.0.weight"
_ONLY_IN_M = "fnet.layer3.5.conv1.weight"
_SHARED_NORM = re.compile(r"^(.+)\.(bn3|downsample\.1)\.(.+)$")
_LARGEST = {"blocks": 12, "stem": 512, "widths": 512, "dim": 512, "levels": 6, "radius": 8, "refinements": 8}
_LARGEST |= {"iterations": 64}


def with_both_norm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the missing name of every norm shared by `bn3` and `downsample.1`, and missing batch counters.

    ValueError if both names are there and their values differ.
    """
    complete = dict(tensors)
    for name, value in tensors.items():
        if match := _SHARED_NORM.match(name):
            twin = f"{match[1]}.{'bn3' if match[2] != 'bn3' else 'downsample.1'}.{match[3]}"
            if not torch.equal(complete.setdefault(twin, value), value):
                raise ValueError(f"{name} and {twin} are one norm in SEA-RAFT, but differ in this file.")
    # The number of batches seen is not used in evaluation, and some writers drop it.
    counters = [
        n.removesuffix("running_var") + "num_batches_tracked" for n in complete if n.endswith("running_var")
    ]
    return {name: torch.zeros((), dtype=torch.long) for name in counters} | complete


def to_metadata(config: SeaRaftConfig) -> dict[str, str]:
    """Return the metadata of a file of this net: its sizes as JSON."""
    return {CONFIG_KEY: json.dumps(asdict(config))}


def find_config(file: WeightFile) -> SeaRaftConfig:
    """Find the net that a file holds: S or M by its names, others by metadata.

    ValueError if the file is not SEA-RAFT.
    """
    if _FIRST_WEIGHT not in file.tensors:
        raise ValueError(
            f"{file.path} is not SEA-RAFT: it has no {_FIRST_WEIGHT}, but for example "
            f"{min(file.tensors)[:120]}. Choose Tartan-C-T-TSKH-spring540x960-M.pth, or another file of "
            "princeton-vl/SEA-RAFT."
        )
    if CONFIG_KEY in file.metadata:
        return _parse_config(file.metadata[CONFIG_KEY], file.path)
    return SEA_RAFT_M if _ONLY_IN_M in file.tensors else SEA_RAFT_S


def _parse_config(text: str, path: Path) -> SeaRaftConfig:
    try:
        values = json.loads(text)
        lists = {name: tuple(int(n) for n in values[name]) for name in ("blocks", "widths")}
        config = SeaRaftConfig(**(values | lists))
        _check_sizes(config)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its {CONFIG_KEY} is not that of a SEA-RAFT net ({error}).") from error
    return config


def _check_sizes(config: SeaRaftConfig) -> None:
    """Reject implausible sizes before the model is built."""
    for name, most in _LARGEST.items():
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        least = 0 if name == "iterations" else 1
        if not all(type(n) is int and least <= n <= most for n in numbers):
            raise ValueError(f"{name} is {value}; {least} to {most} is allowed")
    if config.scale not in (0, -1) or len(config.blocks) != 3 or len(config.widths) != 3:
        raise ValueError("scale must be 0 or -1, and there are three stages")
