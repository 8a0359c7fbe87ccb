"""The SMRA Compare Grid node: all combinations of LoRAs, strengths, T_points and seeds as videos."""

from collections.abc import Sequence

from comfy_api.latest import io

from ..smra_core.evaluation.grid_cells import (
    NO_LORA,
    TRAINED_HERE,
    GridAxes,
    GridLora,
    parse_loras,
    parse_numbers,
)
from ..smra_core.lora.schedule import StrengthSchedule
from .grid.expansion import GridInputs, expand_grid
from .grid.folder import find_grid_folder
from .grid.lora_files import read_list_state
from .grid.metrics import make_metric_inputs
from .host.wire_types import Schedule, make_loader_options_input

_LIST = "One on each line. Behind a bar, the words that stand for it in the prompt: dog.safetensors | sks dog"


class CompareGrid(io.ComfyNode):
    """Node that expands into a loader, a sampler and a decoder for each cell of a grid that is missing."""

    @classmethod
    def define_schema(cls):
        import comfy.samplers

        return io.Schema(
            node_id="SMRACompareGrid",
            display_name="SMRA Compare Grid",
            category="SMRABooth",
            description=(
                "Samples every combination of subject LoRAs, motion LoRAs, strengths, T_points and seeds "
                "with your MODEL and ComfyUI's own sampler. Each video is saved as it comes, so that a "
                "canceled or changed grid samples only what is missing. Leaves a report page, a video wall "
                "and a contact sheet in output/smra/grids."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A WAN model after your shift, distill LoRA and other nodes; of a Wan 2.2 pair "
                    "the high-noise expert. Leave the two LoRAs to this node.",
                ),
                io.Vae.Input("vae", tooltip="Decodes the videos."),
                io.Conditioning.Input("negative", tooltip="What the videos should not show."),
                io.Latent.Input("latent_image", tooltip="Size and length of the videos, as for a KSampler."),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Encodes the prompts. Not needed with positive connected."
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Conditioning of all videos in place of prompt, as image-to-video nodes make it.",
                ),
                Schedule.Input(
                    "schedule",
                    optional=True,
                    tooltip="Strengths before and after T_point, from SMRA T_point Scheduler. The "
                    "strengths here are factors on them, and t_points take the place of its T_point.",
                ),
                io.Model.Input(
                    "model_low_noise",
                    optional=True,
                    tooltip="The low-noise expert of a Wan 2.2 pair. The steps from switch_step on are its.",
                ),
                *(
                    io.LoraModel.Input(
                        f"{purpose}_lora_model",
                        optional=True,
                        tooltip=f"A LoRA straight from a training node. In {purpose}_loras it is called "
                        "'trained here'.",
                    )
                    for purpose in ("subject", "motion")
                ),
                make_loader_options_input(),
                *make_metric_inputs(),
                io.String.Input(
                    "name", default="my_grid",
                    tooltip="Name of the grid's folder. Grids of one name share their videos.",
                ),
                io.String.Input(
                    "prompt", default="a {subject} is {motion}", multiline=True,
                    tooltip="Prompt of the videos. {subject} and {motion} stand for the words of the LoRAs.",
                ),
                *(
                    io.String.Input(
                        f"{purpose}_loras", default="", multiline=True,
                        tooltip=f"{purpose.capitalize()} LoRA files. {_LIST}. None is a video without one; "
                        "dog_*.safetensors is all files that fit, such as those kept while training. More "
                        "lines make more videos.",
                    )
                    for purpose in ("subject", "motion")
                ),
                io.String.Input(
                    "subject_strengths", default="1",
                    tooltip="Strengths of the subject LoRAs: 0.8, 1.0. Raising one comes closer to the "
                    "subject.",
                ),
                io.String.Input(
                    "motion_strengths", default="1",
                    tooltip="Strengths of the motion LoRAs: 0.8, 1.0. Raising one comes closer to the "
                    "motion.",
                ),
                io.String.Input(
                    "t_points", default="",
                    tooltip="Noise levels of T_point: 0.6, 0.7, 0.8. Raising one gives the subject more "
                    "steps at full strength. Empty takes that of the schedule.",
                ),
                io.String.Input(
                    "seeds", default="1",
                    tooltip="Seeds: 1, 2, 3. More show what is chance. The videos of one seed share their "
                    "noise.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=10000,
                    tooltip="Sampling steps. More take longer and refine the videos.",
                ),
                io.Float.Input(
                    "cfg", default=5.0, min=0.0, max=100.0, step=0.1,
                    tooltip="Guidance. Raising it follows the prompt more closely; 1 is for distilled "
                    "models.",
                ),
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.SAMPLER_NAMES, default="euler",
                    tooltip="ComfyUI's sampler, as in a KSampler.",
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.SCHEDULER_NAMES, default="simple",
                    tooltip="ComfyUI's scheduler of the noise levels, as in a KSampler.",
                ),
                io.Float.Input(
                    "fps", default=16.0, min=0.1, max=240.0, step=0.1,
                    tooltip="Frames per second of the videos. Raising it plays them faster.",
                ),
                io.Int.Input(
                    "switch_step", default=0, min=0, max=10000,
                    tooltip="First step of the low-noise expert, from SMRA T_point Scheduler. Raising it "
                    "gives the high-noise expert more steps. Only for a pair.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="The middle frame of all videos."),
                io.String.Output(display_name="report", tooltip="Path of the report page."),
            ],
            enable_expand=True,
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        axes = read_axes(inputs)
        given = GridInputs.read(inputs)
        return expand_grid(given, list(axes.list_cells()))

    @classmethod
    def fingerprint_inputs(
        cls,
        name: str | None = None,
        subject_loras: str | None = None,
        motion_loras: str | None = None,
        **_,
    ) -> str:
        """Return a text that changes with the LoRA files and with the videos that are there, so that the grid
        makes anew what was replaced or removed.
        """
        states = [read_list_state(text or "") for text in (subject_loras, motion_loras)]
        return f"{states} {find_grid_folder(name).list_keys() if name else []}"


def read_axes(inputs: dict) -> GridAxes:
    """Return the axes that the node's lists give; ValueError for what cannot be read."""
    return GridAxes(
        _read_loras(inputs, "subject"),
        _read_loras(inputs, "motion"),
        parse_numbers(inputs["subject_strengths"], "subject_strengths") or [1.0],
        parse_numbers(inputs["motion_strengths"], "motion_strengths") or [1.0],
        _read_t_points(inputs),
        parse_numbers(inputs["seeds"], "seeds", whole=True) or [1],
    )


def _read_loras(inputs: dict, purpose: str) -> list[GridLora]:
    """Return the LoRAs of a list, and first the one from a training node where the list does not name it."""
    import folder_paths

    here = [TRAINED_HERE] if inputs.get(f"{purpose}_lora_model") is not None else []
    listed = parse_loras(inputs[f"{purpose}_loras"], [*here, *folder_paths.get_filename_list("loras")])
    if here and TRAINED_HERE not in [lora.name for lora in listed]:
        listed = [GridLora(TRAINED_HERE), *listed]
    return listed or [GridLora(NO_LORA)]


def _read_t_points(inputs: dict) -> Sequence[float | None]:
    """Return the noise levels of T_point; None alone stands for that of the schedule."""
    t_points = parse_numbers(inputs["t_points"], "t_points")
    for t_point in t_points:
        StrengthSchedule(t_point)  # refuses what is no noise level
    if t_points and inputs.get("model_low_noise") is not None:
        raise ValueError(
            "t_points cannot be compared on a Wan 2.2 pair, whose T_point is the step of the hand-over. "
            "Leave t_points empty, and set T_point in SMRA T_point Scheduler."
        )
    return t_points or [None]
