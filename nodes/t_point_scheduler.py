"""The SMRA T_point Scheduler: when the LoRAs' strengths switch, and from what to what."""

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..smra_core.evaluation.schedule_plot import draw_schedule
from ..smra_core.lora.schedule import (
    MOTION_STRENGTHS,
    STRENGTH_PRESETS,
    SUBJECT_STRENGTHS,
    Strengths,
    StrengthSchedule,
    TPoint,
    count_early_steps,
    describe_run,
)
from ..smra_core.wan.flow_matching import sampling_sigmas
from ..smra_core.wan.sampler import SamplingSettings
from .host.widgets import advanced, show_text
from .host.wire_types import Schedule

STEP, SHARE, SIGMA = "step of a reference run", "share of the steps", "sigma"
CUSTOM = "custom"
REFERENCE = SamplingSettings()
REFERENCE_STEP = round(REFERENCE.steps * (1 - TPoint().sigma))
"""The paper's step 15 of 50, at the shift 1 of the authors' release."""
_BISECTIONS = 40


class TPointScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRATPointScheduler",
            display_name="SMRA T_point Scheduler",
            category="SMRABooth",
            description=(
                "Says at which noise level the LoRAs' strengths switch. Early steps lay out the motion, "
                "late ones draw the looks: the subject LoRA starts low and is doubled at T_point. One "
                "schedule serves any number of Sparse LoRA Loaders, such as the two of a Wan 2.2 pair."
            ),
            inputs=[*_t_point_inputs(), *_strength_inputs(), *_run_inputs()],
            outputs=[
                Schedule.Output(display_name="schedule", tooltip="For Sparse LoRA Loaders."),
                io.Int.Output(
                    display_name="switch_step",
                    tooltip="Steps before the switch in the run that is wired in: end_at_step of a first "
                    "and start_at_step of a second KSampler (Advanced).",
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
    def execute(cls, model=None, sigmas=None, **widgets) -> io.NodeOutput:
        schedule = _schedule(widgets)
        sampling = model and model.get_model_object("model_sampling")
        sigma_of_share = sampling.percent_to_sigma if sampling else _reference_table(widgets)
        t_point = schedule.resolve(sigma_of_share)
        levels = _levels(sampling, sigmas, widgets)
        report = describe_run(t_point, levels)
        drawing = draw_schedule(schedule, t_point, levels)
        picture = torch.from_numpy(np.asarray(drawing).copy()).float()[None] / 255
        show_text(cls, report)
        keyframes = hook_keyframes(schedule.subject, t_point.boundary(levels), sigma_of_share)
        return io.NodeOutput(
            schedule,
            count_early_steps(t_point, levels),
            report,
            keyframes,
            picture,
            ui=ui.PreviewImage(picture, cls=cls),
        )


def _t_point_inputs() -> list:
    return [
        io.Combo.Input(
            "t_point",
            options=[STEP, SHARE, SIGMA],
            default=STEP,
            tooltip="How T_point is given. As a step of a reference run or a sigma it is a noise level, "
            "which stays the same whatever shift and step count you sample with. As a share of the steps "
            "it moves with the shift.",
        ),
        io.Int.Input(
            "step", default=REFERENCE_STEP, min=0, max=10000,
            tooltip="Step of the reference run. Larger: later switch, more steps for the motion to settle.",
        ),
        io.Int.Input(
            "of_steps", default=REFERENCE.steps, min=1, max=10000,
            tooltip="Steps of the reference run (the paper's: 50), not of yours. Larger: earlier switch.",
        ),
        advanced(io.Float.Input(
            "reference_shift", default=REFERENCE.shift, min=0.01, max=100.0, step=0.01,
            tooltip="Shift of the reference run (the authors': 1). Larger: the same step is a higher noise "
            "level, so your run switches earlier.",
        )),
        advanced(io.Float.Input(
            "share", default=REFERENCE_STEP / REFERENCE.steps, min=0.0, max=1.0, step=0.01,
            tooltip="Share of the steps before the switch, with 'share of the steps'. Larger: later switch.",
        )),
        advanced(io.Float.Input(
            "sigma", default=TPoint().sigma, min=0.0, max=1.0, step=0.005,
            tooltip="Noise level of the switch, with 'sigma'. 1 is pure noise. Larger: earlier switch.",
        )),
    ]  # fmt: skip


def _strength_inputs() -> list:
    named = ", ".join(f"{name} {s.early} then {s.late}" for name, s in STRENGTH_PRESETS.items())
    values = {
        "subject_before": (SUBJECT_STRENGTHS.early, "subject before T_point. Larger: stiller, less motion."),
        "subject_after": (SUBJECT_STRENGTHS.late, "subject after T_point. Larger: closer to the subject."),
        "motion_before": (MOTION_STRENGTHS.early, "motion before T_point. Larger: closer to the motion."),
        "motion_after": (
            MOTION_STRENGTHS.late,
            "motion after T_point. Lower it if looks leak from the clip.",
        ),
    }
    return [
        io.Combo.Input(
            "preset",
            options=[*STRENGTH_PRESETS, CUSTOM],
            default=next(iter(STRENGTH_PRESETS)),
            tooltip=f"Strengths of the subject before and after: {named}; the motion stays at "
            f"{MOTION_STRENGTHS.early}. 'custom' takes the four numbers below.",
        ),
        *(
            advanced(io.Float.Input(
                name, default=value, min=-10.0, max=10.0, step=0.05,
                tooltip=f"With preset 'custom': strength of the {text}",
            ))
            for name, (value, text) in values.items()
        ),
    ]  # fmt: skip


def _run_inputs() -> list:
    from comfy.samplers import SCHEDULER_NAMES

    return [
        advanced(io.Combo.Input(
            "run_scheduler", options=list(SCHEDULER_NAMES), default="simple",
            tooltip="Scheduler of your sampler; with a MODEL wired in, used for the report and switch_step "
            "only.",
        )),
        advanced(io.Int.Input(
            "run_steps", default=REFERENCE.steps, min=1, max=10000,
            tooltip="Steps of your sampler; with a MODEL wired in, used for the report and switch_step only.",
        )),
        io.Model.Input(
            "model", optional=True,
            tooltip="The MODEL that you sample with, after its shift node: the report then tells its own "
            "switch.",
        ),
        io.Sigmas.Input(
            "sigmas", optional=True,
            tooltip="The noise levels of your run; the report and switch_step then are exactly of this run.",
        ),
    ]  # fmt: skip


def _schedule(widgets: dict) -> StrengthSchedule:
    kind, preset = widgets["t_point"], widgets["preset"]
    if kind == STEP:
        t_point = TPoint.from_step(widgets["step"], widgets["of_steps"], widgets["reference_shift"]).sigma
    else:
        t_point = widgets["share"] if kind == SHARE else widgets["sigma"]
    if preset == CUSTOM:
        subject = Strengths(widgets["subject_before"], widgets["subject_after"])
        motion = Strengths(widgets["motion_before"], widgets["motion_after"])
    else:
        subject, motion = STRENGTH_PRESETS[preset], MOTION_STRENGTHS
    return StrengthSchedule(t_point, kind == SHARE, subject, motion)


def _reference_table(widgets: dict):
    return lambda share: TPoint.from_step(share, 1, widgets["reference_shift"]).sigma


def _levels(sampling, sigmas, widgets: dict) -> list[float]:
    """Noise levels of the wired run; of the reference run where nothing is wired."""
    if sigmas is not None and len(sigmas) < 2:
        raise ValueError(
            f"The SIGMAS hold {len(sigmas)} levels; a run needs at least 2. Check its steps and denoise."
        )
    if sigmas is not None:
        return sigmas.tolist()
    if sampling is None:
        return sampling_sigmas(widgets["of_steps"], widgets["reference_shift"]).tolist()
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(sampling, widgets["run_scheduler"], widgets["run_steps"]).tolist()


def hook_keyframes(strengths: Strengths, boundary: float, sigma_of_share):
    """The host's keyframes that switch at this boundary of noise levels (inf: late throughout; -1: early)."""
    from comfy.hooks import HookKeyframe, HookKeyframeGroup

    group = HookKeyframeGroup()
    if boundary < float("inf"):
        group.add(HookKeyframe(strengths.early, 0.0))
    if boundary >= 0:
        start = _share_of_sigma(boundary, sigma_of_share) if boundary < float("inf") else 0.0
        group.add(HookKeyframe(strengths.late, start))
    return group


def _share_of_sigma(sigma: float, sigma_of_share) -> float:
    """The share of the steps after which a run has come down to this sigma, for any falling table."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(sigma_of_share(middle)) > sigma else (low, middle)
    return low
