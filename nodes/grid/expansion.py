"""The nodes that a grid expands into: for each missing cell a loader, a sampler, a decoder and a saver."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...smra_core.evaluation.grid_cells import NO_LORA, TRAINED_HERE, CellValues, GridFolder, fill_prompt
from ...smra_core.lora.schedule import StrengthSchedule
from ...smra_core.storage.content_hash import fingerprint_weights, hash_content
from ..host.model_identity import fingerprint_model, fingerprint_vae, fingerprint_values
from ..host.wire_types import Grid
from .folder import KEY_LETTERS, find_grid_folder
from .lora_files import find_files
from .metrics import METRIC_INPUTS


@dataclass(frozen=True)
class GridInputs:
    """What all cells of a grid share."""

    values: Mapping[str, Any]
    """Inputs of the node by name."""
    folder: GridFolder
    shared: str
    """Hash of all that makes the videos beside the values of the axes."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "GridInputs":
        """Check the inputs and hash them. Raises ValueError where the prompt cannot be encoded."""
        if values.get("positive") is None and values.get("clip") is None:
            raise ValueError("Connect clip, which encodes the prompts, or positive in place of prompt.")
        return cls(values, find_grid_folder(values["name"]), hash_inputs(values))

    @property
    def is_pair(self) -> bool:
        """Whether two experts make the steps."""
        return self.values.get("model_low_noise") is not None


def hash_inputs(values: Mapping[str, Any]) -> str:
    """Return a hash of models, conditioning, latent, schedule and sampler settings, by their contents."""
    import comfy.samplers

    parts: list[str] = [fingerprint_vae(values["vae"])]
    for name in ("model", "model_low_noise"):
        model = values.get(name)
        if model is not None:
            sampling = model.get_model_object("model_sampling")
            levels = comfy.samplers.calculate_sigmas(sampling, values["scheduler"], values["steps"])
            parts += [fingerprint_model(model), hash_content(levels)]
    for purpose in ("subject", "motion"):
        lora = values.get(f"{purpose}_lora_model")
        parts.append("" if lora is None else fingerprint_values(lora.items()))
    contents = [values["negative"], values.get("positive"), values["latent_image"]]
    settings = [values.get("schedule"), values.get("loader_options")]
    settings += [values[name] for name in ("steps", "cfg", "sampler_name", "scheduler", "fps", "switch_step")]
    parts += [describe_content(content) for content in contents] + [repr(setting) for setting in settings]
    return hash_content("\n".join(parts).encode())


def describe_content(content: Any) -> str:
    """Return a text that changes with the tensors and numbers in a CONDITIONING or a LATENT.

    Of an object in it, such as the output of CLIP Vision, those of its own attributes count: objects may hold
    one another in a circle.
    """
    if isinstance(content, Tensor):
        return hash_content(content)
    if isinstance(content, Mapping):
        return str({str(name): describe_content(value) for name, value in content.items()})
    if isinstance(content, list | tuple):
        return str([describe_content(value) for value in content])
    if content is None or isinstance(content, bool | int | float | str):
        return repr(content)
    parts = getattr(content, "__dict__", {})
    plain = {name: part for name, part in parts.items() if isinstance(part, Tensor | int | float | str)}
    return f"{type(content).__name__} {describe_content(plain)}"


def make_key(given: GridInputs, cell: CellValues, prompt: str) -> str:
    """Return the key of a cell: a hash of all that its video depends on."""
    paths = [path for lora in (cell.subject, cell.motion) for path in find_files(lora.name, given.is_pair)]
    text = json.dumps([given.shared, [fingerprint_weights(path) for path in paths], cell, prompt])
    return hash_content(text.encode())[:KEY_LETTERS]


def expand_grid(given: GridInputs, cells: Sequence[CellValues]) -> io.NodeOutput:
    """Return the nodes of all missing cells, one after the other, and those of the report."""
    from comfy_execution.graph_utils import GraphBuilder

    graph = GraphBuilder()
    template = given.values["prompt"] if given.values.get("positive") is None else ""
    prompts = [fill_prompt(template, cell) for cell in cells]
    keys = [make_key(given, cell, prompt) for cell, prompt in zip(cells, prompts, strict=True)]
    after: Any = Grid(given.folder.path.name, tuple(keys))
    for cell, prompt, key in zip(cells, prompts, keys, strict=True):
        if given.folder.is_there(key):
            continue
        frames = _add_cell(graph, given, cell, prompt)
        saver = graph.node(
            "SMRASaveGridCell", images=frames, after=after, name=given.folder.path.name, key=key, note=prompt,
            labels="\n".join(f"{axis}: {value}" for axis, value in cell.make_labels().items()),
            fps=given.values["fps"],
        )  # fmt: skip
        after = saver.out(0)
    there = {name: given.values[name] for name in METRIC_INPUTS if given.values.get(name) is not None}
    report = graph.node(
        "SMRAWriteGridReport", grid=after, name=given.folder.path.name, title=given.values["name"], **there
    )
    return io.NodeOutput(report.out(0), report.out(1), expand=graph.finalize())


def _add_cell(graph, given: GridInputs, cell: CellValues, prompt: str) -> Any:
    """Add the nodes of one cell; return the link to its frames."""
    values, positive = given.values, given.values.get("positive")
    if positive is None:
        positive = graph.node("CLIPTextEncode", clip=values["clip"], text=prompt).out(0)
    run = {name: values[name] for name in ("negative", "steps", "cfg", "sampler_name", "scheduler")}
    add_samplers = _add_both_samplers if given.is_pair else _add_sampler
    latents = add_samplers(graph, given, cell, run | {"positive": positive})
    return graph.node("VAEDecode", samples=latents, vae=values["vae"]).out(0)


def _add_sampler(graph, given: GridInputs, cell: CellValues, run: Mapping[str, Any]) -> Any:
    """Add the loader and the sampler of one model; return the link to the latents."""
    return graph.node(
        "KSampler", model=_add_loader(graph, given, cell).out(0), seed=cell.seed, denoise=1.0,
        latent_image=given.values["latent_image"], **run,
    ).out(0)  # fmt: skip


def _add_both_samplers(graph, given: GridInputs, cell: CellValues, run: Mapping[str, Any]) -> Any:
    """Add the loader and the samplers of the two experts; return the link to the latents."""
    loader, switch = _add_loader(graph, given, cell), given.values["switch_step"]
    first = graph.node(
        "KSamplerAdvanced", model=loader.out(0), noise_seed=cell.seed, add_noise="enable",
        latent_image=given.values["latent_image"], start_at_step=0, end_at_step=switch,
        return_with_leftover_noise="enable", **run,
    )  # fmt: skip
    return graph.node(
        "KSamplerAdvanced", model=loader.out(1), noise_seed=cell.seed, add_noise="disable",
        latent_image=first.out(0), start_at_step=switch, end_at_step=10000,
        return_with_leftover_noise="disable", **run,
    ).out(0)  # fmt: skip


def _add_loader(graph, given: GridInputs, cell: CellValues):
    """Add the loader of a cell, with only the inputs that are there."""
    values, schedule = given.values, given.values.get("schedule")
    if cell.t_point is not None:
        schedule = replace(schedule or StrengthSchedule(), t_point=cell.t_point, as_share=False)
    optional = {"schedule": schedule, "loader_options": values.get("loader_options")}
    models = {"model": values["model"]}
    if given.is_pair:
        models = {"model_high_noise": values["model"], "model_low_noise": values["model_low_noise"]}
    loras: dict[str, Any] = {}
    for purpose, lora, strength in (
        ("subject", cell.subject, cell.subject_strength), ("motion", cell.motion, cell.motion_strength)
    ):  # fmt: skip
        is_here = lora.name == TRAINED_HERE
        loras |= {f"{purpose}_lora": NO_LORA if is_here else lora.name, f"{purpose}_strength": strength}
        if is_here:
            optional[f"{purpose}_lora_model"] = values[f"{purpose}_lora_model"]
    kind = "SMRASparseLoRAPairLoader" if given.is_pair else "SMRASparseLoRALoader"
    there = {name: value for name, value in optional.items() if value is not None}
    return graph.node(kind, **models, **loras, **there)
