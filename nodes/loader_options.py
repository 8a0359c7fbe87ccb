"""The SMRA Loader Options node: layers that a Sparse LoRA Loader uses, and how it applies LoRAs."""

from comfy_api.latest import io

from ..smra_core.lora.applied_range import APPLIED_RANGES, AS_TRAINED, EVERYWHERE
from .host.wire_types import LoaderOptions, LoaderOptionsType
from .patching.apply_loras import AUTO, CONSTANT_MODES
from .patching.chosen_lora import LAYER_CHOICES, PAPER, PAPER_PLANS, choose_plan


class LoaderOptionsNode(io.ComfyNode):
    """Node that gives out LoaderOptions."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRALoaderOptions",
            display_name="SMRA Loader Options",
            category="SMRABooth",
            description=(
                "Other layers than the paper's for a Sparse LoRA Loader, whether LoRAs of constant strength "
                "are merged into the weights, and at which noise levels LoRAs apply. A loader without it "
                "uses these defaults."
            ),
            inputs=[
                *_make_layer_inputs("subject"),
                *_make_layer_inputs("motion"),
                io.Combo.Input(
                    "constant_lora",
                    options=list(CONSTANT_MODES),
                    default=AUTO,
                    tooltip="How what is constant of a strength is applied. 'merge': into the weights, "
                    "which is fastest. 'on the fly': added while sampling; nothing is rounded, and a changed "
                    "strength reloads nothing. 'auto' merges into 16- and 32-bit models only; there a LoRA "
                    "that switches is merged at its strength after T_point, and the difference before "
                    "T_point is added while sampling.",
                ),
                io.Combo.Input(
                    "noise_range",
                    options=list(APPLIED_RANGES),
                    default=AS_TRAINED,
                    optional=True,
                    tooltip="Noise levels at which a LoRA is applied that was trained at a part of them, as "
                    f"its file says. '{AS_TRAINED}': at these alone, with strength 0 elsewhere. "
                    f"'{EVERYWHERE}': at all levels, by which a motion LoRA transfers more motion on one "
                    "model without experts. Other LoRAs are applied everywhere in any case.",
                ),
            ],
            outputs=[
                LoaderOptionsType.Output(
                    display_name="loader_options", tooltip="For one or more Sparse LoRA Loaders."
                )
            ],
        )

    @classmethod
    def execute(cls, constant_lora: str, noise_range: str = AS_TRAINED, **layers) -> io.NodeOutput:
        subject, motion = (
            choose_plan(purpose, layers[f"{purpose}_layers"], layers[f"{purpose}_custom_layers"])
            for purpose in PAPER_PLANS
        )
        return io.NodeOutput(LoaderOptions(subject, motion, constant_lora, noise_range))


def _make_layer_inputs(purpose: str) -> list:
    plan = PAPER_PLANS[purpose]
    return [
        io.Combo.Input(
            f"{purpose}_layers",
            options=list(LAYER_CHOICES),
            default=PAPER,
            tooltip=f"Layers of the {purpose} LoRA that are used. 'paper': {plan}. 'all': every layer of the "
            "file, also norms, biases, embeddings, head and image inputs where the model has them. "
            "'custom': the text below.",
        ),
        io.String.Input(
            f"{purpose}_custom_layers",
            default=str(plan),
            tooltip=f"Layers of the {purpose} LoRA with 'custom': any of q,k,v,o,ffn.0,ffn.2 and, if wanted, "
            "a range of blocks, such as q,k@0:15 for the blocks 0 to 14.",
        ),
    ]
