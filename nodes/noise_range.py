"""The SMRA Noise Range node: noise levels that a training draws, such as those of one expert of Wan 2.2."""

from comfy_api.latest import io

from ..smra_core.wan.noise_range import NOISE_PRESETS, NOISE_RANGE_HELP, NoiseRange
from .host.wire_types import NoiseRangeType

CUSTOM = "custom"
LOWEST, HIGHEST = 0.0, 1.0


class NoiseRangeNode(io.ComfyNode):
    """Node that gives out a NoiseRange."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRANoiseRange",
            display_name="SMRA Noise Range",
            category="SMRABooth",
            description=(
                "Trains a LoRA for one expert of Wan 2.2, or at the noise levels where motion is decided. "
                "The range is in the name and the metadata of the LoRA file, and the Sparse LoRA Loaders "
                "apply the LoRA only there."
            ),
            inputs=[
                io.Combo.Input(
                    "noise_range",
                    options=[*NOISE_PRESETS, CUSTOM],
                    default=next(iter(NOISE_PRESETS)),
                    tooltip=NOISE_RANGE_HELP,
                ),
                _make_end_input("low", LOWEST, "more of the low noise out, where details are made"),
                _make_end_input("high", HIGHEST, "less of the high noise out, where layout is made"),
            ],
            outputs=[
                NoiseRangeType.Output(
                    display_name="noise_range", tooltip="For one or more SMRA Training Options."
                )
            ],
        )

    @classmethod
    def execute(cls, noise_range: str, noise_low: float, noise_high: float) -> io.NodeOutput:
        return io.NodeOutput(NOISE_PRESETS.get(noise_range) or NoiseRange(noise_low, noise_high))


def _make_end_input(end: str, default: float, left_out: str) -> io.Float.Input:
    return io.Float.Input(
        f"noise_{end}",
        default=default,
        min=0.0,
        max=1.0,
        step=0.005,
        tooltip=f"{end.title()}est sigma that training draws, with noise_range '{CUSTOM}'. Raising it leaves "
        f"{left_out}.",
    )
