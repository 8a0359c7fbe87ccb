"""Metadata of a LoRA file, under the keys of this project and under those that LoRA managers show."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..wan.noise_range import WHOLE, NoiseRange

_OWN = "smrabooth."
_STAND_IN = re.compile(r"prompt \d+(?: \(\d+\))?")
_NUMBERED = re.compile(r" \(\d+\)$")
_IN_FILE = {"purpose": "role"}
"""Names in the file of fields that are called differently there."""


def name_unknown_caption(index: int) -> str:
    """Return what stands for the caption of sample `index` where only its context is known.

    It is no text to prompt with, so that `LoraMetadata.to_file` leaves it out.
    """
    return f"prompt {index + 1}"


@dataclass(frozen=True)
class LoraMetadata:
    """Metadata of a LoRA file: how it was trained."""

    purpose: str = ""
    """`subject` or `motion`; empty for files of other programs."""
    plan: str = ""
    """Sparse plan, as SparsePlan.parse reads it."""
    rank: int = 0
    base_model: str = ""
    captions: tuple[str, ...] = ()
    steps: int = 0
    name: str = ""
    version: str = ""
    noise_range: str = ""
    """Noise range that it was trained at, as NoiseRange.parse reads it; empty for the whole range."""

    def get_noise_range(self) -> NoiseRange:
        """Return the noise range that the LoRA was trained at: the whole one where the file names none that
        can be read.
        """
        try:
            return NoiseRange.parse(self.noise_range or "whole")
        except ValueError:
            return WHOLE

    def to_file(self) -> dict[str, str]:
        """Return the metadata of a safetensors file: our own keys, and those that LoRA managers show.

        The trigger phrase is made of the captions; without any that are known it is empty.
        """
        captions = tuple(caption for caption in self.captions if not self._is_stand_in(caption))
        values = vars(self) | {"captions": captions}
        own = {_OWN + _IN_FILE.get(key, key): json.dumps(value) for key, value in values.items()}
        return own | {
            "format": "pt",
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": "wan2.1/lora",
            "modelspec.title": self.name,
            "modelspec.description": f"SMRABooth {self.purpose} LoRA for {self.base_model}",
            "modelspec.trigger_phrase": " | ".join(captions),
            "ss_network_dim": str(self.rank),
            "ss_network_alpha": str(self.rank),
            "ss_steps": str(self.steps),
            "ss_base_model_version": self.base_model,
            **self._describe_timesteps(),
        }

    def _describe_timesteps(self) -> dict[str, str]:
        """Return the noise range under the key that musubi-tuner and sd-scripts write (modelspec's), and
        under the names of their options; nothing for the whole range, as they do.
        """
        noise_range = self.get_noise_range()
        if noise_range.is_whole:
            return {}
        low, high = map(str, noise_range.timesteps)
        return {
            "modelspec.timestep_range": f"{low},{high}",
            "ss_min_timestep": low,
            "ss_max_timestep": high,
        }

    def _is_stand_in(self, caption: str) -> bool:
        # A second context under one caption is called `a dog (2)`.
        return bool(_STAND_IN.fullmatch(caption)) or _NUMBERED.sub("", caption) in set(self.captions) - {
            caption
        }

    @classmethod
    def from_file(cls, metadata: Mapping[str, str]) -> "LoraMetadata":
        """Read our own keys from the metadata of a safetensors file.

        Keys that are missing or of another type keep their defaults, as any program may have written them.
        """
        values = {}
        for key, default in vars(cls()).items():
            try:
                value = json.loads(metadata[_OWN + _IN_FILE.get(key, key)])
            except (KeyError, ValueError):
                continue
            value = tuple(map(str, value)) if isinstance(value, list) else value
            if type(value) is type(default):
                values[key] = value
        return cls(**values)
