"""The SMRA T_point Scheduler: when the LoRAs' strengths switch, and from what to what."""

from collections.abc import Callable

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..smra_core.evaluation.schedule_plot import draw_schedule
from ..smra_core.lora.hand_over import (
    OFFICIAL_SHIFT,
    OFFICIAL_SIGMA,
    OFFICIAL_STEPS,
    describe_schedule,
    find_hand_over,
)
from ..smra_core.lora.schedule import (
    MOTION_STRENGTHS,
    STRENGTH_PRESETS,
    Strengths,
    StrengthSchedule,
    TPoint,
    find_early_steps,
)
from ..smra_core.wan.flow_matching import sampling_sigmas
from ..smra_core.wan.sampler import SamplingSettings
from .host.widgets import show_text
from .host.wire_types import Schedule, StrengthOptions, StrengthOptionsType

STEP, SHARE, SIGMA = "step of a reference run", "share of the steps", "sigma"
HAND_OVER, HAND_OVER_AT = "hand-over of the experts", "hand-over at sigma"
"""The two experts of Wan 2.2 make half of the steps each, or the high-noise one those at or above a sigma."""
SETTLED = "settled motion"
"""The run itself switches, where the motion of the video that it predicts stops changing."""
REFERENCE = SamplingSettings()
REFERENCE_STEP = round(REFERENCE.steps * (1 - TPoint().sigma))
"""The paper's step 15 of 50, at the shift 1 of the authors' release."""
_BISECTIONS = 40
_CHOSEN_LATER = (
    "the Sparse LoRA Loader chooses the step during the run, and the log says which; the outputs here are "
    "those of the step of the reference run"
)
_OTHER_ORDER = (
    "switch_step is the number of early steps, no place to cut this run in two; subject_keyframes do not "
    "follow it, as ComfyUI's hooks only go from early to late. The Sparse LoRA Loader follows it"
)


class TPointScheduler(io.ComfyNode):
    """Node that gives out a StrengthSchedule, and shows where a run switches."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRATPointScheduler",
            display_name="SMRA T_point Scheduler",
            category="SMRABooth",
            description=(
                "Sets the noise level at which the LoRAs' strengths switch. Early steps lay out the motion, "
                "late steps draw the looks: the subject LoRA starts low and is doubled at T_point. One "
                "schedule serves any number of Sparse LoRA Loaders, such as the two of a Wan 2.2 pair."
            ),
            inputs=[*_make_t_point_inputs(), *_make_strength_inputs(), *_make_run_inputs()],
            outputs=[
                Schedule.Output(display_name="schedule", tooltip="For Sparse LoRA Loaders."),
                io.Int.Output(
                    display_name="switch_step",
                    tooltip="Number of steps with the early strengths in the connected run: end_at_step of "
                    "a first and start_at_step of a second KSampler (Advanced).",
                ),
                io.String.Output(display_name="report", tooltip="Where the run switches, as a line of text."),
                io.HookKeyframes.Output(
                    display_name="subject_keyframes",
                    tooltip="The subject's strengths for ComfyUI's own LoRA hooks. Those fail on quantized "
                    "and GGUF models and keep a second copy of the model; the Sparse LoRA Loader does not.",
                ),
                io.Image.Output(display_name="picture", tooltip="The strengths over the steps of the run."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model=None, sigmas=None, strengths: StrengthOptions | None = None, **widgets
    ) -> io.NodeOutput:
        sampling = model and model.get_model_object("model_sampling")
        sigma_of_share = sampling.percent_to_sigma if sampling else _make_reference_table(widgets)
        levels = _list_levels(sampling, sigmas, widgets)
        schedule = _make_schedule(widgets, strengths, levels)
        t_point = schedule.resolve(sigma_of_share)
        report = describe_schedule(schedule, t_point, levels)
        is_early = find_early_steps(t_point, levels)
        if is_early != sorted(is_early, reverse=True):
            report = f"{report}. {_OTHER_ORDER}"
        if schedule.when_settled:
            report = f"{_CHOSEN_LATER}: {report}"
        drawing = draw_schedule(schedule, t_point, levels)
        picture = torch.from_numpy(np.asarray(drawing).copy()).float()[None] / 255
        show_text(cls, report)
        keyframes = make_hook_keyframes(schedule.subject, t_point.boundary(levels), sigma_of_share)
        return io.NodeOutput(
            schedule,
            sum(is_early),
            report,
            keyframes,
            picture,
            ui=ui.PreviewImage(picture, cls=cls),
        )


def _make_t_point_inputs() -> list:
    return [
        io.Combo.Input(
            "t_point",
            options=[STEP, SHARE, SIGMA, HAND_OVER, HAND_OVER_AT, SETTLED],
            default=STEP,
            tooltip="How T_point is given. As a step of a reference run or as a sigma it is a noise level, "
            "which stays the same whatever shift and step count you sample with. As a share of the steps "
            "it moves with the shift. The hand-overs are for the two experts of Wan 2.2: early strengths on "
            "the high-noise expert, late strengths on the low-noise expert. They hand over after half of "
            f"the steps of the connected run (noise level {OFFICIAL_SIGMA:.4f} where none is connected), or "
            "at the first step below sigma. With 'settled motion' the run itself switches, where the motion "
            "of the video that it predicts stops changing; for one sampler that makes all steps.",
        ),
        io.Int.Input(
            "step", default=REFERENCE_STEP, min=0, max=10000,
            tooltip="Step of the reference run. Raising it switches later and leaves the motion more steps.",
        ),
        io.Int.Input(
            "of_steps", default=REFERENCE.steps, min=1, max=10000,
            tooltip="Steps of the reference run (the paper's: 50), not yours. Raising it switches earlier.",
        ),
        io.Float.Input(
            "reference_shift", default=REFERENCE.shift, min=0.01, max=100.0, step=0.01,
            tooltip="Shift of the reference run (the authors': 1). Raising it makes the same step a higher "
            "noise level, so that your run switches earlier.",
        ),
        io.Float.Input(
            "share", default=REFERENCE_STEP / REFERENCE.steps, min=0.0, max=1.0, step=0.01,
            tooltip="Share of the steps before the switch; used with 'share of the steps'. Raising it "
            "switches later.",
        ),
        io.Float.Input(
            "sigma", default=TPoint().sigma, min=0.0, max=1.0, step=0.005,
            tooltip="Noise level of the switch, 1 being pure noise; used with 'sigma' and 'hand-over at "
            "sigma' (Wan's own: 0.875 for text to video, 0.9 for image to video). Raising it switches "
            "earlier.",
        ),
    ]  # fmt: skip


def _make_strength_inputs() -> list:
    named = ", ".join(f"{name} {s.early} then {s.late}" for name, s in STRENGTH_PRESETS.items())
    return [
        io.Combo.Input(
            "preset",
            options=list(STRENGTH_PRESETS),
            default=next(iter(STRENGTH_PRESETS)),
            tooltip=f"Strengths of the subject before and after T_point: {named}; the motion stays at "
            f"{MOTION_STRENGTHS.early}. Not used when strengths are connected.",
        ),
    ]


def _make_run_inputs() -> list:
    from comfy.samplers import SCHEDULER_NAMES

    return [
        io.Combo.Input(
            "run_scheduler", options=list(SCHEDULER_NAMES), default="simple",
            tooltip="Scheduler of your sampler. Used with a connected MODEL, for the report and switch_step "
            "only.",
        ),
        io.Int.Input(
            "run_steps", default=REFERENCE.steps, min=1, max=10000,
            tooltip="Steps of your sampler. Used with a connected MODEL, for the report and switch_step "
            "only.",
        ),
        io.Model.Input(
            "model", optional=True,
            tooltip="The MODEL that you sample with, after its shift node: the report is then about your own "
            "run.",
        ),
        io.Sigmas.Input(
            "sigmas", optional=True,
            tooltip="Noise levels of your run: the report and switch_step are then exactly of this run.",
        ),
        StrengthOptionsType.Input(
            "strengths",
            optional=True,
            tooltip="Your own four strengths, from SMRA Strength Options, in place of the preset.",
        ),
    ]  # fmt: skip


def _make_schedule(widgets: dict, strengths: StrengthOptions | None, levels: list[float]) -> StrengthSchedule:
    """Return the schedule of the widgets for a run over these noise levels."""
    kind = widgets["t_point"]
    if kind in (HAND_OVER, HAND_OVER_AT):
        t_point = levels[find_hand_over(levels, widgets["sigma"] if kind == HAND_OVER_AT else None)]
    elif kind in (STEP, SETTLED):
        t_point = TPoint.from_step(widgets["step"], widgets["of_steps"], widgets["reference_shift"]).sigma
    else:
        t_point = widgets["share"] if kind == SHARE else widgets["sigma"]
    chosen = strengths or StrengthOptions(STRENGTH_PRESETS[widgets["preset"]], MOTION_STRENGTHS)
    return StrengthSchedule(
        t_point,
        kind == SHARE,
        chosen.subject,
        chosen.motion,
        at_hand_over=kind in (HAND_OVER, HAND_OVER_AT),
        when_settled=kind == SETTLED,
    )


def _make_reference_table(widgets: dict) -> Callable[[float], float]:
    """Return the function from a share of the reference run's steps to its noise level."""
    return lambda share: TPoint.from_step(share, 1, widgets["reference_shift"]).sigma


def _list_levels(sampling, sigmas, widgets: dict) -> list[float]:
    """Return the noise levels of the connected run; those of the reference run where none is connected.

    Where the experts hand over, the reference is ComfyUI's own Wan 2.2 graph.
    """
    if sigmas is not None and len(sigmas) < 2:
        raise ValueError(
            f"The SIGMAS hold {len(sigmas)} levels; a run needs at least 2. Check its steps and denoise."
        )
    if sigmas is not None:
        return sigmas.tolist()
    if sampling is None and widgets["t_point"] in (HAND_OVER, HAND_OVER_AT):
        return sampling_sigmas(OFFICIAL_STEPS, OFFICIAL_SHIFT).tolist()
    if sampling is None:
        return sampling_sigmas(widgets["of_steps"], widgets["reference_shift"]).tolist()
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(sampling, widgets["run_scheduler"], widgets["run_steps"]).tolist()


def make_hook_keyframes(strengths: Strengths, boundary: float, sigma_of_share: Callable[[float], float]):
    """Return ComfyUI's keyframes that switch at this noise level.

    A `boundary` of infinity keeps the late strength throughout, one of -1 the early strength.
    """
    from comfy.hooks import HookKeyframe, HookKeyframeGroup

    group = HookKeyframeGroup()
    if boundary < float("inf"):
        group.add(HookKeyframe(strengths.early, 0.0))
    if boundary >= 0:
        start = _find_share(boundary, sigma_of_share) if boundary < float("inf") else 0.0
        group.add(HookKeyframe(strengths.late, start))
    return group


def _find_share(sigma: float, sigma_of_share: Callable[[float], float]) -> float:
    """Return the share of the steps after which a run has come down to this sigma, for any falling table."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(sigma_of_share(middle)) > sigma else (low, middle)
    return low
