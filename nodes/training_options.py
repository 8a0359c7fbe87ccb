"""The SMRA Training Options node: optimizer, batch, seed, saving, layers and noise range of a run."""

from comfy_api.latest import io

from ..smra_core.lora.plan import ALL_LAYERS, MOTION, MOTION_WITHOUT_FFN_0, SUBJECT, SUBJECT_WITHOUT_FFN_0
from ..smra_core.training.trainer import TrainSettings
from ..smra_core.wan.noise_range import NOISE_PRESETS, NOISE_RANGE_HELP, NoiseRange
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
CUSTOM_NOISE = "custom"
LOWEST, HIGHEST = 0.0, 1.0


class TrainingOptionsNode(io.ComfyNode):
    """Node that gives out TrainingOptions."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRATrainingOptions",
            display_name="SMRA Training Options",
            category="SMRABooth",
            description=(
                "Optimizer, batch, seed, saving, layers and noise range for SMRA Train Subject LoRA and SMRA "
                "Train Motion LoRA. A training node without it uses these defaults."
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
                *_make_noise_inputs(),
                io.Boolean.Input(
                    "own_sizes",
                    default=False,
                    optional=True,
                    tooltip="Let each clip, and pictures of a subject, keep their own shape, with at most as "
                    "many pixels as the training node's width x height. A batch holds one shape. Off, "
                    "everything is cropped to that size.",
                ),
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
        noise_range: str = next(iter(NOISE_PRESETS)),
        noise_low: float = LOWEST,
        noise_high: float = HIGHEST,
        own_sizes: bool = False,
        **values,
    ) -> io.NodeOutput:
        chosen = NOISE_PRESETS.get(noise_range) or NoiseRange(noise_low, noise_high)
        train = update_settings(DEFAULTS, ROWS, values)
        return io.NodeOutput(TrainingOptions(train, LAYERS[layers], chosen, own_sizes))


def _make_noise_inputs() -> list:
    """Return the widgets of the noise range; optional, so that graphs from before them keep working."""
    return [
        io.Combo.Input(
            "noise_range",
            options=[*NOISE_PRESETS, CUSTOM_NOISE],
            default=next(iter(NOISE_PRESETS)),
            optional=True,
            tooltip=NOISE_RANGE_HELP,
        ),
        *(
            io.Float.Input(
                f"noise_{end}",
                default=default,
                min=0.0,
                max=1.0,
                step=0.005,
                optional=True,
                tooltip=f"{end.title()}est sigma that training draws, with noise_range '{CUSTOM_NOISE}'. "
                f"Raising it leaves {text}.",
            )
            for end, default, text in (
                ("low", LOWEST, "more of the low noise out, where details are made"),
                ("high", HIGHEST, "less of the high noise out, where layout and motion are made"),
            )
        ),
    ]
