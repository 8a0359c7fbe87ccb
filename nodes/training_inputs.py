"""The inputs that both training nodes share, with the core's own defaults, and their settings."""

from comfy_api.latest import io

from ..smra_core.trainer import TrainSettings
from .node_text import advanced

LoraModel, LossMap = io.Custom("LORA_MODEL"), io.Custom("LOSS_MAP")
DEFAULTS = TrainSettings()


def front_inputs(name: str, steps: int, rank: int) -> list:
    """What stands on the front of the node."""
    return [
        io.String.Input(
            "name", default=name, tooltip="Of the LoRA file. Another name is another run, from the start."
        ),
        io.Int.Input(
            "steps", default=steps, min=1, max=100_000,
            tooltip="More steps learn more and take longer; too many copy the data's background and light, "
            "too. Raising it later goes on with the finished run.",
        ),
        io.Int.Input(
            "rank", default=rank, min=1, max=256,
            tooltip="Raising it lets the LoRA hold more detail, and makes its file larger; lower it when it "
            "copies the data too closely.",
        ),
    ]  # fmt: skip


def advanced_inputs() -> list:
    """What rarely needs a touch."""
    inputs = [
        io.Float.Input(
            "learning_rate", default=DEFAULTS.learning_rate, min=1e-7, max=1e-1, step=1e-6, round=False,
            tooltip="Raising it learns faster, until it breaks: losses jump, pictures turn to noise.",
        ),
        io.Int.Input(
            "batch_size", default=DEFAULTS.batch_size, min=1, max=64,
            tooltip="Samples at once. Raising it takes that much more memory and steadies each step.",
        ),
        io.Int.Input(
            "accumulate", default=DEFAULTS.accumulate, min=1, max=64,
            tooltip="Batches that a step averages. Raising it steadies a step and takes time, not memory.",
        ),
        io.Int.Input(
            "training_seed", default=DEFAULTS.seed, min=0, max=2**63 - 1,
            tooltip="Of all random numbers. Another seed is another run, from the start.",
        ),
        io.Int.Input(
            "save_every", default=DEFAULTS.save_every, min=1, max=10_000,
            tooltip="Steps between saved states. Raising it saves less often: a crash of the whole program "
            "costs up to so many steps. Cancelling costs none.",
        ),
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
    return [advanced(item) for item in inputs]


def outputs() -> list:
    return [
        LoraModel.Output(display_name="lora", tooltip="For Load LoRA Model and the host's other LoRA nodes."),
        LossMap.Output(display_name="loss_map", tooltip="For Plot Loss Graph."),
        io.Int.Output(display_name="trained_steps"),
        io.String.Output(display_name="file", tooltip="The saved LoRA, as the LoRA loaders list it."),
    ]


def train_settings(values: dict) -> TrainSettings:
    """Of the node's inputs. ValueError as TrainSettings raises."""
    return TrainSettings(
        steps=values["steps"],
        batch_size=values["batch_size"],
        accumulate=values["accumulate"],
        learning_rate=values["learning_rate"],
        seed=values["training_seed"],
        save_every=values["save_every"],
    )
