"""The SMRA Sparse LoRA Loader: a subject and a motion LoRA on one MODEL, sparse in layers and in time."""

import logging

from comfy_api.latest import io

from ..smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule
from .host.widgets import show_text
from .host.wire_types import LoaderOptions, Schedule, make_loader_options_input
from .patching.apply_loras import AUTO, apply_loras, at_constant_strength
from .patching.chosen_lora import NONE, PAPER_PLANS, ChosenLora, choose_lora, describe_choice, read_file_state

log = logging.getLogger("smrabooth")

DEFAULTS = LoaderOptions(*PAPER_PLANS.values(), AUTO)
NO_LORA = (
    "No LoRA is chosen, so the plain model would be sampled. Choose a subject_lora or a motion_lora, connect "
    "a training node's LoRA, or bypass this node (Ctrl+B)."
)


class SparseLoRALoader(io.ComfyNode):
    """Node that applies a subject and a motion LoRA to a MODEL."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRASparseLoRALoader",
            display_name="SMRA Sparse LoRA Loader",
            category="SMRABooth",
            description=(
                "Applies a subject LoRA and a motion LoRA to a WAN model, each only to its own layers, so "
                "that they do not overwrite one another. With a schedule the subject's strength changes at "
                "T_point. Reads LoRA files of every common kind and reports what it used."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A WAN model, of any precision, GGUF included."),
                *make_lora_inputs(
                    "subject",
                    "Raising it comes closer to the subject, in the end at the cost of the motion.",
                ),
                *make_lora_inputs(
                    "motion",
                    "Raising it comes closer to the motion, in the end at the cost of the subject.",
                ),
                Schedule.Input(
                    "schedule",
                    optional=True,
                    tooltip="Strengths before and after T_point, from SMRA T_point Scheduler; they are "
                    "multiplied by the strengths here. Not connected, the strengths here hold throughout.",
                ),
                *(
                    io.LoraModel.Input(
                        f"{purpose}_lora_model",
                        optional=True,
                        tooltip=f"A LoRA straight from a training node, used in place of {purpose}_lora.",
                    )
                    for purpose in PAPER_PLANS
                ),
                make_loader_options_input(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For a sampler that runs all the steps."),
                io.Model.Output(
                    display_name="model_early",
                    tooltip="Strengths before T_point throughout, for the first of two KSampler (Advanced).",
                ),
                io.Model.Output(
                    display_name="model_late",
                    tooltip="Strengths after T_point throughout, for the second of two KSampler (Advanced).",
                ),
                io.String.Output(display_name="report", tooltip="What was used of each LoRA, and how."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        schedule: StrengthSchedule | None = None,
        loader_options: LoaderOptions | None = None,
        **loras,
    ) -> io.NodeOutput:
        options = loader_options or DEFAULTS
        chosen = _choose_loras(model, loras, options)
        used = schedule or StrengthSchedule(
            subject=Strengths.from_value(1.0), motion=Strengths.from_value(1.0)
        )
        scheduled = [
            one.schedule(
                multiply_strengths(loras[f"{one.purpose}_strength"], used, one.purpose), options.noise_range
            )
            for one in chosen
        ]
        further = [one.further for one in chosen]
        applied = apply_loras(model, scheduled, used, options.constant_lora, further)
        early, late = (
            apply_loras(
                model, at_constant_strength(scheduled, side), used, options.constant_lora, further
            ).model
            for side in ("early", "late")
        )
        report = write_report(chosen, scheduled, applied.merged, schedule)
        show_text(cls, report)
        if not chosen:
            log.warning("SMRA Sparse LoRA Loader: %s", report)
        return io.NodeOutput(applied.model, early, late, report)

    @classmethod
    def validate_inputs(
        cls,
        subject_lora: str | None = None,
        motion_lora: str | None = None,
        subject_lora_model: str | None = NONE,
        motion_lora_model: str | None = NONE,
    ) -> bool | str:
        """Return True, or a sentence where no LoRA is chosen or a chosen file is not there.

        ComfyUI shows the sentence on the node before anything runs. It passes None for a connected input and
        leaves out what is not connected. It does not compare the file names with the lists by itself, because
        they are arguments here.
        """
        import folder_paths

        files = [file for file in (subject_lora, motion_lora) if file not in (None, NONE)]
        missing = [file for file in files if file not in folder_paths.get_filename_list("loras")]
        if missing:
            return f"{missing[0]!r} is not in models/loras. Choose a file of the list (key R reads it again)."
        given = (subject_lora, motion_lora, subject_lora_model, motion_lora_model)
        return NO_LORA if all(one == NONE for one in given) else True

    @classmethod
    def fingerprint_inputs(cls, subject_lora: str | None = None, motion_lora: str | None = None, **_) -> str:
        """Return a text that changes with the files, so that one replaced under its name is read anew."""
        return f"{read_file_state(subject_lora)}, {read_file_state(motion_lora)}"


def make_lora_inputs(purpose: str, raised: str, more: str = "") -> list:
    """Return the inputs for the file and the strength of one purpose.

    `raised` says what raising the strength does; `more` is added to the tooltip of the file.
    """
    import folder_paths

    return [
        io.Combo.Input(
            f"{purpose}_lora",
            options=[NONE, *folder_paths.get_filename_list("loras")],
            default=NONE,
            tooltip=f"File of the {purpose} LoRA. ComfyUI, DiffSynth, diffusers, PEFT, kohya and LyCORIS "
            f"names are read.{more}",
        ),
        io.Float.Input(
            f"{purpose}_strength",
            default=1.0,
            min=-10.0,
            max=10.0,
            step=0.05,
            tooltip=f"Strength of the {purpose} LoRA; with a schedule, a factor on its strengths. {raised}",
        ),
    ]


def _choose_loras(model, loras: dict, options: LoaderOptions) -> list[ChosenLora]:
    """Return the LoRA of each purpose that is there."""
    plans = {"subject": options.subject_plan, "motion": options.motion_plan}
    chosen = (
        choose_lora(purpose, loras[f"{purpose}_lora"], loras.get(f"{purpose}_lora_model"), plan, model)
        for purpose, plan in plans.items()
    )
    return [one for one in chosen if one is not None]


def multiply_strengths(factor: float, schedule: StrengthSchedule, purpose: str) -> Strengths:
    """Return the schedule's strengths of one purpose, times the strength of its widget."""
    scheduled = getattr(schedule, purpose)
    return Strengths(factor * scheduled.early, factor * scheduled.late)


def write_report(
    chosen: list[ChosenLora],
    loras: list[ScheduledLora],
    merged: tuple[float, ...],
    schedule: StrengthSchedule | None,
) -> str:
    """Describe what was used of each LoRA, how strong, and where the strengths switch."""
    if not chosen:
        return NO_LORA
    lines = []
    for one, used_as, value in zip(chosen, loras, merged, strict=True):
        lines += describe_choice(one, used_as, value)
    if schedule is not None and any(one.strengths.early != one.strengths.late for one in loras):
        unit = "of the steps" if schedule.as_share else "noise level"
        lines.append(f"T_point: {schedule.t_point:.2f} ({unit})")
    return "\n".join(lines)
