"""Inputs and outputs that both training nodes have."""

from typing import Any

from comfy_api.latest import io

from ...smra_core.training.train_settings import TrainSettings
from ..host.wire_types import LossOptionsType, TrainingOptionsType
from .settings_widgets import Widget, make_widgets

LoraModel, LossMap = io.Custom("LORA_MODEL"), io.Custom("LOSS_MAP")

MODEL_TOOLTIP = (
    "A WAN of 1.3B, 5B or 14B, of any precision: text-to-video, image-to-video, Fun or VACE. The help page "
    "lists what 'positive' must carry for each."
)
VAE_TOOLTIP = "The VAE that came with the model: WAN 2.1's, or Wan 2.2's for TI2V-5B."
STEPS = Widget("steps", dict(min=1, max=100_000))
RANK = Widget("rank", dict(min=1, max=256))
SIZE = (
    Widget("width", dict(min=64, max=1280, step=16)),
    Widget("height", dict(min=64, max=1280, step=16)),
)


def make_option_inputs() -> list:
    """Return the optional inputs of a training node that come from other nodes."""
    return [
        io.String.Input(
            "captions",
            optional=True,
            force_input=True,
            tooltip="Prompts in words, one a line, such as the data loaders give out. They are written into "
            "the LoRA file, where LoRA managers show them, and change nothing else.",
        ),
        TrainingOptionsType.Input(
            "training_options",
            optional=True,
            tooltip="Learning rate, batch, seed, saving and layers, from SMRA Training Options. Not "
            "connected, the defaults of that node hold.",
        ),
        LossOptionsType.Input(
            "loss_options",
            optional=True,
            tooltip="Rarely changed settings of the loss, from SMRA Loss Options. Not connected, the "
            "defaults of that node hold.",
        ),
    ]


def make_first_inputs(name: str, settings: Any, train: TrainSettings) -> list:
    """Return the first widgets of a training node: name, steps and rank."""
    named = io.String.Input(
        "name", default=name, tooltip="Name of the LoRA file. Changing it starts a new run."
    )
    return [named, *make_widgets(train, [STEPS]), *make_widgets(settings, [RANK])]


def make_preview_input() -> io.Int.Input:
    """Return the widget that turns previews on."""
    return io.Int.Input(
        "preview_every",
        default=0,
        min=0,
        max=10_000,
        tooltip="Steps between two pictures of what the model makes at that point of the training; 0 shows "
        "none. Raising it shows fewer. Each picture takes a dozen evaluations of the model.",
    )


def make_outputs() -> list:
    """Return the outputs of a training node."""
    return [
        LoraModel.Output(
            display_name="lora",
            tooltip="The LoRA, for SMRA Sparse LoRA Loader, ComfyUI's Load LoRA Model and other LoRA nodes.",
        ),
        LossMap.Output(display_name="loss_map", tooltip="Loss of every step, for ComfyUI's Plot Loss Graph."),
        io.Int.Output(display_name="trained_steps", tooltip="Steps that the LoRA was trained for."),
        io.String.Output(display_name="file", tooltip="Name of the saved LoRA, as LoRA loaders list it."),
    ]
