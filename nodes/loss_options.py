"""The SMRA Loss Options node: rarely changed settings of the subject loss and of the motion loss."""

from comfy_api.latest import io

from ..smra_core.training.gradient_share import SHARE
from ..smra_core.training.motion_settings import MotionSettings
from ..smra_core.training.sura import SubjectSettings
from .host.model_folders import TINY_DECODER
from .host.wire_types import LossOptions, LossOptionsType
from .training.settings_widgets import Widget, make_widgets, update_settings

SUBJECT, MOTION = SubjectSettings(), MotionSettings()
NO_TINY_DECODER = "none"
ON_SUBJECT, ON_MOTION = "Used by SMRA Train Subject LoRA only.", "Used by SMRA Train Motion LoRA only."
BOTH_ROWS = (
    Widget("weighted_velocity"),
    Widget("shift", dict(min=0.1, max=20.0, step=0.1), id="training_shift"),
)
SUBJECT_ROWS = (
    Widget("align_block", dict(min=0, max=39), note=ON_SUBJECT),
    Widget("projector_width", dict(min=64, max=8192, step=64), note=ON_SUBJECT),
)
MOTION_ROWS = (
    Widget("debias", note=ON_MOTION),
    Widget("flow_weight", options=("none", "clean"), note=ON_MOTION),
    Widget("window", dict(min=1, max=64), note=ON_MOTION),
    Widget("context", dict(min=1, max=64), note=ON_MOTION),
)
NEWER_ROWS = (
    Widget("first_frame_share", dict(min=0.0, max=1.0, step=0.05), note=ON_MOTION, optional=True),
    Widget("count_given", note=ON_MOTION, optional=True),
    Widget("mora_share", dict(min=SHARE.least, max=SHARE.most, step=0.05), note=ON_MOTION, optional=True),
    Widget("difference_weight", dict(min=0.0, max=100.0, step=0.5), note=ON_MOTION, optional=True),
)
"""Widgets after the tiny decoder's, so that the values of saved workflows keep their places."""


class LossOptionsNode(io.ComfyNode):
    """Node that gives out LossOptions."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRALossOptions",
            display_name="SMRA Loss Options",
            category="SMRABooth",
            description=(
                "Rarely changed settings of the losses: first those of both training nodes, then those of "
                "SMRA Train Subject LoRA, then those of SMRA Train Motion LoRA. A training node without it "
                "uses these defaults."
            ),
            inputs=[
                *make_widgets(SUBJECT, BOTH_ROWS),
                *make_widgets(SUBJECT, SUBJECT_ROWS),
                *make_widgets(MOTION, MOTION_ROWS),
                io.Combo.Input(
                    "tiny_decoder",
                    options=[NO_TINY_DECODER, *TINY_DECODER.list_files()],
                    default=NO_TINY_DECODER,
                    optional=True,
                    tooltip="File for decode 'tiny', which decode 'auto' may then choose too. "
                    f"{TINY_DECODER.tooltip} {ON_MOTION}",
                ),
                *make_widgets(MOTION, NEWER_ROWS),
            ],
            outputs=[
                LossOptionsType.Output(display_name="loss_options", tooltip="For one or more training nodes.")
            ],
        )

    @classmethod
    def execute(cls, tiny_decoder: str = NO_TINY_DECODER, **values) -> io.NodeOutput:
        subject = update_settings(SUBJECT, (*BOTH_ROWS, *SUBJECT_ROWS), values)
        motion = update_settings(MOTION, (*BOTH_ROWS, *MOTION_ROWS, *NEWER_ROWS), values)
        file = None if tiny_decoder == NO_TINY_DECODER else TINY_DECODER.find(tiny_decoder)
        return io.NodeOutput(LossOptions(subject, motion, file))
