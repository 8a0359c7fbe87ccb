"""A probe that writes down the strength of each LoRA at every evaluation of a model, and a node for it.

The strength is measured on a linear that only one of the LoRAs is on, from what the linear adds to its own
W x: nothing of the pack is asked.
"""

import json

import torch
from safetensors.torch import load_file


def with_probe(model, measures: dict, write):
    """A clone whose evaluations pass (sigma, strength of each LoRA) to `write`.

    `measures` holds (linear, weight, bias, A, B) by the LoRA's name: the linear's own numbers, and the
    LoRA's factors.
    """
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor, x, timestep, *args, **kwargs):
        found = {}
        for purpose, (name, weight, bias, a, b) in measures.items():
            given = torch.randn(1, 3, a.shape[1], generator=torch.Generator().manual_seed(0))
            linear = executor.class_obj.get_submodule(name)
            added = linear(given) - given @ weight.T - bias
            whole = given @ a.T @ b.T
            found[purpose] = round(((added * whole).sum() / whole.square().sum()).item(), 3)
        write((float(timestep.max()) / 1000, *found.values()))
        return executor(x, timestep, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "probe", wrapper)
    return clone


def read_measure(name: str, checkpoint: dict, lora: dict) -> tuple:
    """What `with_probe` takes for a linear, from the tensors of a checkpoint and of a LoRA file."""
    scale = checkpoint.get(f"{name}.weight_scale", torch.ones(()))
    factors = (lora[f"diffusion_model.{name}.lora_{factor}.weight"] for factor in "AB")
    return name, checkpoint[f"{name}.weight"].float() * scale, checkpoint[f"{name}.bias"], *factors


class StrengthProbe:
    """Node that appends a line of JSON to a file at every evaluation of the MODEL."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "probe", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        texts = {name: ("STRING", {}) for name in ("checkpoint", "loras", "log")}
        return {"required": {"model": ("MODEL",), **texts}}

    def probe(self, model, checkpoint: str, loras: str, log: str):
        """`loras` is JSON: [linear, file] by the LoRA's name."""
        weights = load_file(checkpoint)
        measures = {
            purpose: read_measure(name, weights, load_file(file))
            for purpose, (name, file) in json.loads(loras).items()
        }

        def write(line):
            with open(log, "a") as file:
                file.write(json.dumps(line) + "\n")

        return (with_probe(model, measures, write),)


NODE_CLASS_MAPPINGS = {"StrengthProbe": StrengthProbe}
