"""The SMRA Training Options node: learning rate, batch, seed, saving and layers of a training run."""

from dataclasses import replace

from comfy_api.latest import io

from ..smra_core.lora.plan import (
    ALL_LAYERS,
    MOTION,
    MOTION_WITHOUT_FFN_0,
    SUBJECT,
    SUBJECT_WITHOUT_FFN_0,
    SparsePlan,
)
from ..smra_core.training.motion_settings import MotionSettings
from ..smra_core.training.train_settings import TrainSettings
from ..smra_core.wan.noise_range import WHOLE, NoiseRange
from .host.wire_types import (
    NoiseRangeType,
    OptimizerOptions,
    OptimizerOptionsType,
    TrainingOptions,
    TrainingOptionsType,
)
from .training.settings_widgets import Widget, collect_values, make_widgets

DEFAULTS, MOTION_DEFAULTS = TrainSettings(), MotionSettings()
ROWS = (
    Widget("learning_rate", dict(min=1e-7, max=10.0, step=1e-6, round=False)),
    Widget("batch_size", dict(min=1, max=64)),
    Widget("accumulate", dict(min=1, max=64)),
    Widget("weight_decay", dict(min=0.0, max=1.0, step=0.001)),
    Widget("grad_clip", dict(min=0.0, max=100.0, step=0.1)),
    # A widget named `seed` would get ComfyUI's own control that changes it after every run.
    Widget("seed", dict(min=0, max=2**63 - 1), id="training_seed"),
    Widget("save_every", dict(min=1, max=10_000)),
    Widget("save_minutes", dict(min=0.1, max=1440.0, step=0.5)),
)
MOTION_ROWS = (
    Widget("color_copies", dict(min=0, max=8), note="Used by SMRA Train Motion LoRA only.", optional=True),
)
LAYERS = {
    "paper": (SUBJECT, MOTION),
    "all-layers": (ALL_LAYERS, ALL_LAYERS),
    "paper-without-ffn0": (SUBJECT_WITHOUT_FFN_0, MOTION_WITHOUT_FFN_0),
}
"""Choice of layers -> plans of a subject LoRA and of a motion LoRA."""
CUSTOM = "custom"
"""Choice that takes the layers from a text."""


class TrainingOptionsNode(io.ComfyNode):
    """Node that gives out TrainingOptions."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRATrainingOptions",
            display_name="SMRA Training Options",
            category="SMRABooth",
            description=(
                "Learning rate, batch, seed, saving and layers for SMRA Train Subject LoRA and SMRA Train "
                "Motion LoRA. A training node without it uses these defaults."
            ),
            inputs=[
                *make_widgets(DEFAULTS, ROWS),
                io.Combo.Input(
                    "layers",
                    options=[*LAYERS, CUSTOM],
                    default=next(iter(LAYERS)),
                    tooltip=f"Layers that get the LoRA. 'paper' trains {SUBJECT} for a subject and {MOTION} "
                    "for a motion, so that each leaves room for the other. 'all-layers' trains every one, "
                    "'paper-without-ffn0' the paper's without the one that both share (its ablation), "
                    "'custom' those of custom_layers.",
                ),
                io.Boolean.Input(
                    "own_sizes",
                    default=False,
                    optional=True,
                    tooltip="Let each clip, and pictures of a subject, keep their own shape, with at most as "
                    "many pixels as the training node's width x height. A batch holds one shape. Off, "
                    "everything is cropped to that size.",
                ),
                io.String.Input(
                    "custom_layers",
                    default=str(ALL_LAYERS),
                    optional=True,
                    tooltip="Layers to train with 'custom', such as 'q,k,ffn.0', or 'q,k@0:15' in the blocks "
                    "0 to 14. SMRA Layer Probe gives out such a text. More layers take more memory.",
                ),
                NoiseRangeType.Input(
                    "noise_range",
                    optional=True,
                    tooltip="Noise levels that training draws, from SMRA Noise Range: those of one expert of "
                    "Wan 2.2, or of motion. Not connected, all of them.",
                ),
                OptimizerOptionsType.Input(
                    "optimizer_options",
                    optional=True,
                    tooltip="Optimizer, moving average, kept LoRAs and base preservation, from SMRA "
                    "Optimizer Options. Not connected, the defaults of that node hold.",
                ),
                *make_widgets(MOTION_DEFAULTS, MOTION_ROWS),
            ],
            outputs=[
                TrainingOptionsType.Output(
                    display_name="training_options", tooltip="For one or more training nodes."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        layers: str,
        noise_range: NoiseRange = WHOLE,
        own_sizes: bool = False,
        custom_layers: str = str(ALL_LAYERS),
        optimizer_options: OptimizerOptions | None = None,
        color_copies: int = MOTION_DEFAULTS.color_copies,
        **values,
    ) -> io.NodeOutput:
        options = optimizer_options or OptimizerOptions()
        # The training node sets the steps; until then no warm-up is too long for them.
        steps = max(DEFAULTS.steps, options.train.get("warmup_steps", 0) + 1)
        train = replace(DEFAULTS, steps=steps, **options.train, **collect_values(ROWS, values))
        plans = (SparsePlan.parse(custom_layers.strip()),) * 2 if layers == CUSTOM else LAYERS[layers]
        return io.NodeOutput(
            TrainingOptions(train, plans, noise_range, own_sizes, options.preserve_weight, color_copies)
        )
