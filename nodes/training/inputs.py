"""The inputs and outputs that both training nodes share."""

from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from ...smra_core.lora.plan import PLANS
from ...smra_core.training.trainer import TrainSettings
from ..host.widgets import advanced
from .settings_widgets import Widget, chosen, widgets

LoraModel, LossMap = io.Custom("LORA_MODEL"), io.Custom("LOSS_MAP")

RANK = Widget(
    "rank",
    "Raising it lets the LoRA hold more detail, and makes its file larger; lower it when it copies the data "
    "too closely.",
    dict(min=1, max=256),
)
STEPS = Widget(
    "steps",
    "More steps learn more and take longer; too many copy the data's background and light, too. Raising it "
    "later goes on with the finished run.",
    dict(min=1, max=100_000),
)
SIZE = (
    Widget(
        "width",
        "Pictures are scaled and cropped to it. Raising it shows finer detail, and takes memory and time.",
        dict(min=64, max=1280, step=16),
    ),
    Widget("height", "As width.", dict(min=64, max=1280, step=16)),
)
VELOCITY = (
    Widget(
        "weighted_velocity",
        "Count the middle noise levels most, as the authors' code does. Off counts all alike.",
    ),
    Widget(
        "shift",
        "Which noise levels are trained: 1 is all alike. Raising it trains more at high noise, where the "
        "layout is decided.",
        dict(min=0.1, max=20.0, step=0.1),
        id="training_shift",
    ),
)
TRAIN = (
    Widget(
        "learning_rate",
        "Raising it learns faster, until it breaks: losses jump, pictures turn to noise.",
        dict(min=1e-7, max=1e-1, step=1e-6, round=False),
    ),
    Widget(
        "weight_decay",
        "Pulls the LoRA back to nothing. Raising it forgets details, and the data's accidents first.",
        dict(min=0.0, max=1.0, step=0.001),
    ),
    Widget(
        "grad_clip",
        "The longest step that one batch may ask for. Raising it lets odd samples pull harder; 0 lets them "
        "all.",
        dict(min=0.0, max=100.0, step=0.1),
    ),
    Widget(
        "batch_size",
        "Samples at once. Raising it takes that much more memory and steadies each step.",
        dict(min=1, max=64),
    ),
    Widget(
        "accumulate",
        "Batches that a step averages. Raising it steadies a step and takes time, not memory.",
        dict(min=1, max=64),
    ),
    Widget(
        "seed",
        "Of all random numbers. Another seed is another run, from the start.",
        dict(min=0, max=2**63 - 1),
        id="training_seed",
    ),
    Widget(
        "save_every",
        "Steps between saved states. Raising it saves less often: a crash of the whole program costs up to "
        "so many steps. Canceling costs none.",
        dict(min=1, max=10_000),
    ),
    Widget(
        "save_minutes",
        "The state is saved after so many minutes, too. Raising it risks more where steps are slow.",
        dict(min=0.1, max=1440.0, step=0.5),
    ),
)


def plans(without: str) -> dict[str, Any]:
    """Which layers may learn, by name; `without` is the other LoRA's."""
    return {name: plan for name, plan in PLANS.items() if not name.startswith(without)}


def front_inputs(name: str, settings: Any, train: TrainSettings) -> list:
    """What stands on the front of the node."""
    tip = "Of the LoRA file. Another name is another run, from the start."
    return [
        io.String.Input("name", default=name, tooltip=tip),
        *widgets(train, [STEPS], fold=False),
        *widgets(settings, [RANK], fold=False),
    ]


def advanced_inputs(settings: Any, rows: Sequence[Widget], train: TrainSettings) -> list:
    """What rarely needs a touch: of the method, of training, and of what is shown."""
    shown = [
        io.Int.Input(
            "preview_every", default=0, min=0, max=10_000,
            tooltip="Steps between pictures of what the model makes now; 0 shows none. Raising it shows "
            "fewer; each takes a dozen evaluations of the model.",
        ),
        io.String.Input(
            "captions", default="", multiline=True, optional=True,
            tooltip="The prompts in words, one a line: written into the file for LoRA managers to show. They "
            "change nothing else.",
        ),
    ]  # fmt: skip
    return widgets(settings, rows) + widgets(train, TRAIN) + [advanced(item) for item in shown]


def outputs() -> list:
    return [
        LoraModel.Output(display_name="lora", tooltip="For Load LoRA Model and the host's other LoRA nodes."),
        LossMap.Output(display_name="loss_map", tooltip="For Plot Loss Graph."),
        io.Int.Output(display_name="trained_steps"),
        io.String.Output(display_name="file", tooltip="The saved LoRA, as the LoRA loaders list it."),
    ]


def train_settings(defaults: TrainSettings, values: Mapping[str, Any]) -> TrainSettings:
    """Of the node's inputs. ValueError as TrainSettings raises."""
    return chosen(defaults, [STEPS, *TRAIN], values)
