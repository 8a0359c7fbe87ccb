"""The SMRA Strength Options node: strengths of its own for a T_point Scheduler."""

from comfy_api.latest import io

from ..smra_core.lora.schedule import MOTION_STRENGTHS, SUBJECT_STRENGTHS, Strengths
from .host.wire_types import StrengthOptions, StrengthOptionsType

_WIDGETS = (
    (
        "subject_before",
        SUBJECT_STRENGTHS.early,
        "subject LoRA before T_point. Raising it leaves less motion.",
    ),
    (
        "subject_after",
        SUBJECT_STRENGTHS.late,
        "subject LoRA after T_point. Raising it comes closer to the subject.",
    ),
    (
        "motion_before",
        MOTION_STRENGTHS.early,
        "motion LoRA before T_point. Raising it comes closer to the motion.",
    ),
    (
        "motion_after",
        MOTION_STRENGTHS.late,
        "motion LoRA after T_point. Raising it follows the motion longer; lower it if the clip's look shows.",
    ),
)


class StrengthOptionsNode(io.ComfyNode):
    """Node that gives out StrengthOptions."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRAStrengthOptions",
            display_name="SMRA Strength Options",
            category="SMRABooth",
            description=(
                "Your own strengths before and after T_point, in place of the preset of the T_point "
                "Scheduler. The defaults are those of its preset 'paper'."
            ),
            inputs=[
                io.Float.Input(
                    name, default=value, min=-10.0, max=10.0, step=0.05, tooltip=f"Strength of the {text}"
                )
                for name, value, text in _WIDGETS
            ],
            outputs=[
                StrengthOptionsType.Output(
                    display_name="strengths", tooltip="For the strengths input of SMRA T_point Scheduler."
                )
            ],
        )

    @classmethod
    def execute(
        cls, subject_before: float, subject_after: float, motion_before: float, motion_after: float
    ) -> io.NodeOutput:
        subject, motion = Strengths(subject_before, subject_after), Strengths(motion_before, motion_after)
        return io.NodeOutput(StrengthOptions(subject, motion))
