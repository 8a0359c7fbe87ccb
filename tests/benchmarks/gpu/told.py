"""What the program tells of a step's memory before it starts, by part, to compare with what is measured."""

from smra_core.training.cost import count_activation_bytes, count_lora_parameters, count_projector_parameters
from smra_core.training.decode_choice import estimate


def tell_motion(spec, settings, choice, sizes) -> dict[str, int]:
    """Return the bytes of a motion step by part."""
    tokens = spec.latents.count_tokens(settings.frames, settings.width, settings.height)
    activations = count_activation_bytes(spec, tokens, 1, sizes.dtype.itemsize)
    if settings.mora_weight:
        activations = int(estimate(settings, choice.decode, choice.recompute, spec).bytes)
    return {"activations": activations, **_tell_trained(spec, settings)}


def tell_subject(spec, settings, batch: int, sizes) -> dict[str, int]:
    """Return the bytes of a subject step by part."""
    tokens = spec.latents.count_tokens(1, settings.width, settings.height)
    features = next(iter(sizes.dinov2.values())).width
    trained = _tell_trained(spec, settings)
    if settings.sura_weight:
        trained["trained"] += 16 * count_projector_parameters(spec.dim, features, settings.projector_width)
    return {"activations": count_activation_bytes(spec, tokens, batch, sizes.dtype.itemsize), **trained}


def _tell_trained(spec, settings) -> dict[str, int]:
    names = settings.plan.select(spec.linear_names())
    return {"trained": 16 * count_lora_parameters(spec, names, settings.rank)}
