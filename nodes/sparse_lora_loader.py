"""The SMRA Sparse LoRA Loader: a subject and a motion LoRA on one MODEL, sparse in layers and in time."""

from comfy_api.latest import io

from ..smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule
from .host.widgets import show_text
from .host.wire_types import LoaderOptions, LoaderOptionsType, Schedule
from .patching.apply_loras import AUTO, apply_loras, at_constant_strength
from .patching.chosen_lora import NONE, PAPER_PLANS, ChosenLora, choose_lora, describe_choice

DEFAULTS = LoaderOptions(*PAPER_PLANS.values(), AUTO)


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
                *_make_lora_inputs(
                    "subject",
                    "Raising it comes closer to the subject, in the end at the cost of the motion.",
                ),
                *_make_lora_inputs(
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
                LoaderOptionsType.Input(
                    "loader_options",
                    optional=True,
                    tooltip="Other layers than the paper's, and how constant LoRAs are applied, from SMRA "
                    "Loader Options. Not connected, the defaults of that node hold.",
                ),
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
        chosen = _choose_loras(loras, options)
        used = schedule or StrengthSchedule(
            subject=Strengths.from_value(1.0), motion=Strengths.from_value(1.0)
        )
        scheduled = [
            ScheduledLora(one.lora, _multiply_strengths(loras[f"{one.purpose}_strength"], used, one.purpose))
            for one in chosen
        ]
        applied = apply_loras(model, scheduled, used, options.constant_lora)
        early, late = (
            apply_loras(model, at_constant_strength(scheduled, side), used, options.constant_lora).model
            for side in ("early", "late")
        )
        report = _write_report(chosen, scheduled, applied.merged, schedule)
        show_text(cls, report)
        return io.NodeOutput(applied.model, early, late, report)


def _make_lora_inputs(purpose: str, raised: str) -> list:
    import folder_paths

    return [
        io.Combo.Input(
            f"{purpose}_lora",
            options=[NONE, *folder_paths.get_filename_list("loras")],
            default=NONE,
            tooltip=f"File of the {purpose} LoRA. ComfyUI, DiffSynth, diffusers, PEFT, kohya and LyCORIS "
            "names are read.",
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


def _choose_loras(loras: dict, options: LoaderOptions) -> list[ChosenLora]:
    """Return the LoRA of each purpose that is there."""
    plans = {"subject": options.subject_plan, "motion": options.motion_plan}
    chosen = (
        choose_lora(purpose, loras[f"{purpose}_lora"], loras.get(f"{purpose}_lora_model"), plan)
        for purpose, plan in plans.items()
    )
    return [one for one in chosen if one is not None]


def _multiply_strengths(factor: float, schedule: StrengthSchedule, purpose: str) -> Strengths:
    scheduled = getattr(schedule, purpose)
    return Strengths(factor * scheduled.early, factor * scheduled.late)


def _write_report(
    chosen: list[ChosenLora],
    loras: list[ScheduledLora],
    merged: tuple[bool, ...],
    schedule: StrengthSchedule | None,
) -> str:
    if not chosen:
        return "No LoRA chosen: the model goes through unchanged."
    lines = []
    for one, (_, strengths), into_weights in zip(chosen, loras, merged, strict=True):
        lines += describe_choice(one, strengths, into_weights)
    if schedule is not None and any(strengths.early != strengths.late for _, strengths in loras):
        unit = "of the steps" if schedule.as_share else "noise level"
        lines.append(f"T_point: {schedule.t_point:.2f} ({unit})")
    return "\n".join(lines)
