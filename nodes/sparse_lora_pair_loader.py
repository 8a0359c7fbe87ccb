"""The SMRA Sparse LoRA Pair Loader: a subject and a motion LoRA on both experts of Wan 2.2."""

from typing import NamedTuple

from comfy_api.latest import io

from ..smra_core.lora.expert_pair import find_expert, find_pair
from ..smra_core.lora.schedule import Strengths, StrengthSchedule
from .host.widgets import show_text
from .host.wire_types import LoaderOptions, Schedule, make_loader_options_input
from .patching.apply_loras import apply_loras, at_constant_strength
from .patching.chosen_lora import NONE, ChosenLora, choose_lora, read_file_state
from .sparse_lora_loader import DEFAULTS, log, make_lora_inputs, multiply_strengths, write_report

SIDES = {"high": "early", "low": "late"}
"""Side of T_point that each expert is on, with T_point at their hand-over."""
NO_LORA = (
    "No LoRA is chosen, so the plain experts would be sampled. Choose a subject_lora or a motion_lora, or "
    "bypass this node (Ctrl+B)."
)
_PAIR = (
    " One file serves both experts; of a pair such as X_high_noise and X_low_noise choose either file, and "
    "the other is found by its name."
)


class ExpertModel(NamedTuple):
    """The MODEL of one expert with its LoRAs, and the lines of the report on it."""

    model: object
    report: str


class SparseLoRAPairLoader(io.ComfyNode):
    """Node that applies a subject and a motion LoRA to both experts of Wan 2.2."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRASparseLoRAPairLoader",
            display_name="SMRA Sparse LoRA Pair Loader",
            category="SMRABooth",
            description=(
                "Applies a subject LoRA and a motion LoRA to the two experts of Wan 2.2, as two Sparse LoRA "
                "Loaders do, and finds the file of each expert by its name. With T_point at the hand-over of "
                "the experts, the high-noise expert gets the early strengths and the low-noise expert the "
                "late ones."
            ),
            inputs=[
                *(
                    io.Model.Input(
                        f"model_{expert}_noise",
                        tooltip=f"The {expert}-noise expert of Wan 2.2, of any precision, GGUF included. A "
                        "MODEL does not say which expert it is, so look at the file's name.",
                    )
                    for expert in SIDES
                ),
                *make_lora_inputs(
                    "subject",
                    "Raising it comes closer to the subject, in the end at the cost of the motion.",
                    _PAIR,
                ),
                *make_lora_inputs(
                    "motion",
                    "Raising it comes closer to the motion, in the end at the cost of the subject.",
                    _PAIR,
                ),
                Schedule.Input(
                    "schedule",
                    optional=True,
                    tooltip="Strengths before and after T_point, from SMRA T_point Scheduler; they are "
                    "multiplied by the strengths here. Not connected, the strengths here hold throughout.",
                ),
                make_loader_options_input(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model_high_noise",
                    tooltip="For the first of two KSampler (Advanced), which makes the steps of high noise.",
                ),
                io.Model.Output(
                    display_name="model_low_noise",
                    tooltip="For the second KSampler (Advanced), which goes on from the first.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="File and strengths of each LoRA on each expert, and what is assumed.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model_high_noise,
        model_low_noise,
        schedule: StrengthSchedule | None = None,
        loader_options: LoaderOptions | None = None,
        **loras,
    ) -> io.NodeOutput:
        options = loader_options or DEFAULTS
        models = {"high": model_high_noise, "low": model_low_noise}
        chosen = {
            purpose: _choose_for_both(purpose, models, loras, options) for purpose in ("subject", "motion")
        }
        experts = [
            _apply_to_expert(
                expert,
                model,
                [pair[expert] for pair in chosen.values() if pair is not None],
                loras,
                schedule,
                options,
            )
            for expert, model in models.items()
        ]
        report = "\n".join([*(expert.report for expert in experts), *_describe_assumptions(models)])
        show_text(cls, report)
        if not any(chosen.values()):
            log.warning("SMRA Sparse LoRA Pair Loader: %s", NO_LORA)
        return io.NodeOutput(*(expert.model for expert in experts), report)

    @classmethod
    def validate_inputs(cls, subject_lora: str | None = None, motion_lora: str | None = None) -> bool | str:
        """Return True, or a sentence where no LoRA is chosen or a file of one expert is not there.

        ComfyUI shows the sentence on the node before anything runs. It passes None for a connected input.
        """
        import folder_paths

        files = [file for file in (subject_lora, motion_lora) if file not in (None, NONE)]
        names = folder_paths.get_filename_list("loras")
        missing = [file for file in files if file not in names]
        if missing:
            return f"{missing[0]!r} is not in models/loras. Choose a file of the list (key R reads it again)."
        try:
            for file in files:
                find_pair(file, names)
        except ValueError as error:
            return str(error)
        return NO_LORA if subject_lora == motion_lora == NONE else True

    @classmethod
    def fingerprint_inputs(cls, subject_lora: str | None = None, motion_lora: str | None = None, **_) -> str:
        """Return a text that changes with the files of both experts, so that a replaced one is read anew."""
        return ", ".join(_read_pair_state(file) for file in (subject_lora, motion_lora))


def _choose_for_both(
    purpose: str, models: dict, loras: dict, options: LoaderOptions
) -> dict[str, ChosenLora] | None:
    """Return the LoRA of one purpose for each expert, or None when no file is chosen.

    Of a file that holds both experts each gets its own part. Raises ValueError when the chosen file is one of
    a pair and the other is not there.
    """
    import folder_paths

    name = loras[f"{purpose}_lora"]
    if name == NONE:
        return None
    plan = options.subject_plan if purpose == "subject" else options.motion_plan
    files = find_pair(name, folder_paths.get_filename_list("loras"))
    return {
        expert: choose_lora(purpose, file, None, plan, models[expert], expert)
        for expert, file in files._asdict().items()
    }


def _read_pair_state(file: str | None) -> str:
    import folder_paths

    if file in (None, NONE):
        return ""
    return ", ".join(map(read_file_state, find_pair(file, folder_paths.get_filename_list("loras"))))


def _apply_to_expert(
    expert: str,
    model,
    chosen: list[ChosenLora],
    loras: dict,
    schedule: StrengthSchedule | None,
    options: LoaderOptions,
) -> ExpertModel:
    """Apply the LoRAs to the MODEL of one expert as a single loader does.

    With T_point at the hand-over the expert is on one side of it throughout, so that its strengths are
    constant.
    """
    used = schedule or StrengthSchedule(subject=Strengths.from_value(1.0), motion=Strengths.from_value(1.0))
    scheduled = [
        one.schedule(
            multiply_strengths(loras[f"{one.purpose}_strength"], used, one.purpose),
            options.noise_range,
            expert,
        )
        for one in chosen
    ]
    if used.at_hand_over:
        scheduled = at_constant_strength(scheduled, SIDES[expert])
    applied = apply_loras(model, scheduled, used, options.constant_lora, [one.further for one in chosen])
    lines = [f"{expert}-noise expert:", write_report(chosen, scheduled, applied.merged, schedule)]
    if chosen and used.at_hand_over:
        lines.append(f"T_point: {used.t_point:.4f} (hand-over of the experts), {SIDES[expert]} strengths")
    lines += [f"  {note}" for one in chosen for note in _list_expert_notes(one, expert)]
    return ExpertModel(applied.model, "\n".join(lines))


def _list_expert_notes(chosen: ChosenLora, expert: str) -> list[str]:
    """Return a note where the metadata of a file names the other expert than its place."""
    base_model = chosen.loaded.metadata.base_model
    trained_on = find_expert(base_model)
    if trained_on in (None, expert):
        return []
    return [
        f"note: {chosen.source} was trained on {base_model}, the {trained_on}-noise expert, and is applied "
        f"to the {expert}-noise expert. If that is not meant, give it a name that ends in {trained_on}_noise "
        "and put the other expert's file beside it."
    ]


def _describe_assumptions(models: dict) -> list[str]:
    """Return what the node cannot know about the two MODELs."""
    high, low = models.values()
    if high.model is low.model:
        return [
            "note: both inputs hold the same checkpoint; connect the high-noise expert to model_high_noise "
            "and the low-noise expert to model_low_noise."
        ]
    return [
        "assumed: model_high_noise holds the high-noise expert and model_low_noise the low-noise expert, as "
        "a MODEL does not say which it is."
    ]
