"""What a MODEL or VAE of the graph is, so that a run knows its own again: by file where the host tells."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ...smra_core.storage.content_hash import fingerprint_weights, hash_content
from .versions import source_file

_SAMPLED = 64
"""Values looked at in each tensor where the file is not known."""


def fingerprint_model(model) -> str:
    """Of a MODEL's weights and of the LoRAs patched onto them.

    The weights in memory may be patched in place for another node just now, so they are looked at only where
    no file is known, and then only the ones that LoRAs leave alone.
    """
    file = source_file(model)
    if file is not None:
        options = [part for part in model.cached_patcher_init[1] if isinstance(part, Mapping)]
        base = f"{fingerprint_weights(Path(file))} stored as {[part.get('dtype') for part in options]}"
    else:
        named = model.model.diffusion_model.named_parameters()
        base = fingerprint_values((name, value) for name, value in named if value.ndim != 2)
    return hash_content(f"{base} {_patches(model.patches)}".encode())


def fingerprint_vae(vae) -> str:
    file = source_file(vae.patcher)
    return fingerprint_weights(Path(file)) if file is not None else fingerprint_values(vae.get_sd().items())


def fingerprint_values(named: Iterable[tuple[str, Tensor]]) -> str:
    """Of names, shapes, and values spread over every tensor."""
    lines = []
    for name, value in sorted(named, key=lambda item: item[0]):
        flat = value.detach().reshape(-1)
        lines.append(
            f"{name} {tuple(value.shape)} {hash_content(flat[:: max(1, len(flat) // _SAMPLED)].cpu())}"
        )
    return hash_content("\n".join(lines).encode())


def _patches(patches: Mapping) -> str:
    """Of weight patches: what they hold, and how strong they are."""
    lines = []
    for key, entries in sorted(patches.items(), key=lambda item: str(item[0])):
        for strength, content, of_model, *_ in entries:
            held = [hash_content(tensor.cpu()) for tensor in _tensors(content)]
            lines.append(f"{key} {strength} {of_model} {held}")
    return "\n".join(lines)


def _tensors(content) -> list[Tensor]:
    if isinstance(content, Tensor):
        return [content]
    if isinstance(content, (tuple, list)):
        return [tensor for part in content for tensor in _tensors(part)]
    return _tensors(getattr(content, "weights", ()))  # the host's adapter objects
