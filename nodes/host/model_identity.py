"""Fingerprints of a MODEL and a VAE, by which a run recognizes its own; by file where ComfyUI knows it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ...smra_core.storage.content_hash import fingerprint_weights, hash_content
from .model_patches import describe_trained_patches
from .versions import find_source_file

_SAMPLED = 64
"""Number of values that are hashed of each tensor where the file is not known."""


def fingerprint_model(model) -> str:
    """Return a hash of a MODEL's weights, of the LoRAs patched onto them, and of other patches that it is
    trained with.

    At this moment the weights in memory may be patched in place for another node. Therefore they are hashed
    only where no file is known, and then only those that LoRAs do not change.
    """
    file = find_source_file(model)
    if file is not None:
        options = [part for part in model.cached_patcher_init[1] if isinstance(part, Mapping)]
        base = f"{fingerprint_weights(Path(file))} stored as {[part.get('dtype') for part in options]}"
    else:
        named = model.model.diffusion_model.named_parameters()
        base = fingerprint_values((name, value) for name, value in named if value.ndim != 2)
    # Nothing is added for a model without such patches, whose runs keep their names.
    others = describe_trained_patches(model)
    return hash_content(f"{base} {_describe_patches(model.patches)}{others}".encode())


def fingerprint_vae(vae) -> str:
    """Return a hash of a VAE's weights."""
    file = find_source_file(vae.patcher)
    return fingerprint_weights(Path(file)) if file is not None else fingerprint_values(vae.get_sd().items())


def fingerprint_values(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of names, shapes, and values spread over every tensor."""
    lines = []
    for name, value in sorted(named, key=lambda item: item[0]):
        flat = value.detach().reshape(-1)
        lines.append(
            f"{name} {tuple(value.shape)} {hash_content(flat[:: max(1, len(flat) // _SAMPLED)].cpu())}"
        )
    return hash_content("\n".join(lines).encode())


def _describe_patches(patches: Mapping) -> str:
    """Return lines that say what weight patches hold, and how strong they are."""
    lines = []
    for key, entries in sorted(patches.items(), key=lambda item: str(item[0])):
        for strength, content, of_model, *_ in entries:
            hashes = [hash_content(tensor.cpu()) for tensor in _collect_tensors(content)]
            lines.append(f"{key} {strength} {of_model} {hashes}")
    return "\n".join(lines)


def _collect_tensors(content) -> list[Tensor]:
    if isinstance(content, Tensor):
        return [content]
    if isinstance(content, (tuple, list)):
        return [tensor for part in content for tensor in _collect_tensors(part)]
    return _collect_tensors(getattr(content, "weights", ()))  # ComfyUI's adapter objects
