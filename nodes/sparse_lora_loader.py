"""The SMRA Sparse LoRA Loader: a subject and a motion LoRA on one MODEL, sparse in layers and in time."""

from comfy_api.latest import io

from ..smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule
from .host.widgets import advanced, show_text
from .host.wire_types import Schedule
from .patching.apply_loras import AUTO, CONSTANT_MODES, apply_loras, at_constant_strength
from .patching.chosen_lora import (
    LAYER_CHOICES,
    NONE,
    PAPER,
    PAPER_PLANS,
    ChosenLora,
    choose_lora,
    describe_choice,
    layer_plan,
)


class SparseLoRALoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRASparseLoRALoader",
            display_name="SMRA Sparse LoRA Loader",
            category="SMRABooth",
            description=(
                "Puts a subject LoRA and a motion LoRA onto a WAN model, each only into its own layers, so "
                "that they do not overwrite one another. With a schedule the subject's strength changes at "
                "T_point. Takes LoRA files of every common kind and says what it used."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A WAN model, of any precision, GGUF included."),
                *_slot_inputs(
                    "subject", "Larger: more of the subject's looks, in the end at the motion's cost."
                ),
                *_slot_inputs(
                    "motion", "Larger: closer to the motion's course, in the end at the subject's cost."
                ),
                Schedule.Input(
                    "schedule",
                    optional=True,
                    tooltip="From the T_point Scheduler. Its strengths before and after T_point are "
                    "multiplied by the strengths here. Without it both strengths hold throughout.",
                ),
                *(
                    io.LoraModel.Input(
                        f"{purpose}_lora_model",
                        optional=True,
                        tooltip=f"A LoRA straight from a training node; used instead of {purpose}_lora.",
                    )
                    for purpose in PAPER_PLANS
                ),
                advanced(
                    io.Combo.Input(
                        "constant_lora",
                        options=list(CONSTANT_MODES),
                        default=AUTO,
                        tooltip="Where a LoRA goes whose strength never changes. 'merge': into the "
                        "weights, fastest. 'on the fly': added while sampling; nothing is rounded, and "
                        "changing a strength reloads nothing. 'auto' merges into 16- and 32-bit models "
                        "only.",
                    )
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
    def execute(cls, model, schedule=None, constant_lora=AUTO, **slots) -> io.NodeOutput:
        chosen = [found for purpose in PAPER_PLANS if (found := _chosen(purpose, slots)) is not None]
        used = schedule or StrengthSchedule(
            subject=Strengths.from_value(1.0), motion=Strengths.from_value(1.0)
        )
        loras = [ScheduledLora(one.lora, _strengths(one.purpose, slots, used)) for one in chosen]
        applied = apply_loras(model, loras, used, constant_lora)
        early, late = (
            apply_loras(model, at_constant_strength(loras, side), used, constant_lora).model
            for side in ("early", "late")
        )
        report = _report(chosen, loras, applied.merged, schedule)
        show_text(cls, report)
        return io.NodeOutput(applied.model, early, late, report)


def _slot_inputs(purpose: str, raised: str) -> list:
    import folder_paths

    plan = PAPER_PLANS[purpose]
    return [
        io.Combo.Input(
            f"{purpose}_lora",
            options=[NONE, *folder_paths.get_filename_list("loras")],
            default=NONE,
            tooltip=f"The {purpose} LoRA. ComfyUI, DiffSynth, diffusers, PEFT, kohya and LyCORIS names are "
            "read.",
        ),
        io.Float.Input(
            f"{purpose}_strength",
            default=1.0,
            min=-10.0,
            max=10.0,
            step=0.05,
            tooltip=f"{raised} With a schedule this multiplies its strengths.",
        ),  # fmt: skip
        io.Combo.Input(
            f"{purpose}_layers",
            options=list(LAYER_CHOICES),
            default=PAPER,
            tooltip=f"Which layers of the file are used. 'paper': {plan}. 'all': every one. 'custom': the "
            "text below.",
        ),
        advanced(
            io.String.Input(
                f"{purpose}_custom_layers",
                default=str(plan),
                tooltip="Used with 'custom': any of q,k,v,o,ffn.0,ffn.2 and, if wanted, a range of blocks, "
                "such as q,k@0:15 for the blocks 0 to 14.",
            )
        ),
    ]


def _chosen(purpose: str, slots: dict) -> ChosenLora | None:
    plan = layer_plan(purpose, slots[f"{purpose}_layers"], slots[f"{purpose}_custom_layers"])
    return choose_lora(purpose, slots[f"{purpose}_lora"], slots.get(f"{purpose}_lora_model"), plan)


def _strengths(purpose: str, slots: dict, schedule: StrengthSchedule) -> Strengths:
    own, scheduled = slots[f"{purpose}_strength"], getattr(schedule, purpose)
    return Strengths(own * scheduled.early, own * scheduled.late)


def _report(
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
