"""The SMRA Training Options node: optimizer, batch, seed, saving and layers of a training run."""

from comfy_api.latest import io

from ..smra_core.lora.plan import ALL_LAYERS, MOTION, MOTION_WITHOUT_FFN_0, SUBJECT, SUBJECT_WITHOUT_FFN_0
from ..smra_core.training.trainer import TrainSettings
from .host.wire_types import TrainingOptions, TrainingOptionsType
from .training.settings_widgets import Widget, make_widgets, update_settings

DEFAULTS = TrainSettings()
ROWS = (
    Widget("learning_rate", dict(min=1e-7, max=1e-1, step=1e-6, round=False)),
    Widget("batch_size", dict(min=1, max=64)),
    Widget("accumulate", dict(min=1, max=64)),
    Widget("weight_decay", dict(min=0.0, max=1.0, step=0.001)),
    Widget("grad_clip", dict(min=0.0, max=100.0, step=0.1)),
    # A widget named `seed` would get ComfyUI's own control that changes it after every run.
    Widget("seed", dict(min=0, max=2**63 - 1), id="training_seed"),
    Widget("save_every", dict(min=1, max=10_000)),
    Widget("save_minutes", dict(min=0.1, max=1440.0, step=0.5)),
)
LAYERS = {
    "paper": (SUBJECT, MOTION),
    "all-layers": (ALL_LAYERS, ALL_LAYERS),
    "paper-without-ffn0": (SUBJECT_WITHOUT_FFN_0, MOTION_WITHOUT_FFN_0),
}
"""Choice of layers -> plans of a subject LoRA and of a motion LoRA."""


class TrainingOptionsNode(io.ComfyNode):
    """Node that gives out TrainingOptions."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRATrainingOptions",
            display_name="SMRA Training Options",
            category="SMRABooth",
            description=(
                "Optimizer, batch, seed, saving and layers for SMRA Train Subject LoRA and SMRA Train Motion "
                "LoRA. A training node without it uses these defaults."
            ),
            inputs=[
                *make_widgets(DEFAULTS, ROWS),
                io.Combo.Input(
                    "layers",
                    options=list(LAYERS),
                    default=next(iter(LAYERS)),
                    tooltip=f"Layers that get the LoRA. 'paper' trains {SUBJECT} for a subject and {MOTION} "
                    "for a motion, so that each leaves room for the other. 'all-layers' trains every one, "
                    "'paper-without-ffn0' the paper's without the one that both share (its ablation).",
                ),
            ],
            outputs=[
                TrainingOptionsType.Output(
                    display_name="training_options", tooltip="For one or more training nodes."
                )
            ],
        )

    @classmethod
    def execute(cls, layers: str, **values) -> io.NodeOutput:
        return io.NodeOutput(TrainingOptions(update_settings(DEFAULTS, ROWS, values), LAYERS[layers]))
