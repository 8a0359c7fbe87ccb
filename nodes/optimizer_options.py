"""The SMRA Optimizer Options node: optimizer, moving average, kept LoRAs and base preservation."""

from comfy_api.latest import io

from ..smra_core.training.learning_rate import LR_SCHEDULES
from ..smra_core.training.optimizer import OPTIMIZERS
from ..smra_core.training.sura import SubjectSettings
from ..smra_core.training.train_settings import TrainSettings
from .host.wire_types import OptimizerOptions, OptimizerOptionsType
from .training.settings_widgets import Widget, collect_values, make_widgets

ROWS = (
    Widget("optimizer", options=OPTIMIZERS),
    Widget("lr_schedule", options=LR_SCHEDULES),
    Widget("warmup_steps", dict(min=0, max=10_000)),
    Widget("ema_decay", dict(min=0.0, max=0.9999, step=0.001, round=False)),
    Widget("keep_every", dict(min=0, max=100_000)),
    Widget("held_out_every", dict(min=0, max=100_000)),
)
PRESERVE = Widget("preserve_weight", dict(min=0.0, max=100.0, step=0.05))


class OptimizerOptionsNode(io.ComfyNode):
    """Node that gives out OptimizerOptions."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRAOptimizerOptions",
            display_name="SMRA Optimizer Options",
            category="SMRABooth",
            description=(
                "Optimizer, learning rate over the run, moving average, LoRAs that are kept on the way, a "
                "held-out loss and base preservation, for SMRA Training Options. Without this node: AdamW at "
                "a constant rate, and nothing of the others."
            ),
            inputs=[*make_widgets(TrainSettings(), ROWS), *make_widgets(SubjectSettings(), [PRESERVE])],
            outputs=[
                OptimizerOptionsType.Output(
                    display_name="optimizer_options", tooltip="For one or more SMRA Training Options."
                )
            ],
        )

    @classmethod
    def execute(cls, preserve_weight: float, **values) -> io.NodeOutput:
        return io.NodeOutput(OptimizerOptions(collect_values(ROWS, values), preserve_weight))
