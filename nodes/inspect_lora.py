"""The SMRA Inspect LoRA node: what a LoRA file holds, and whether a WAN model can take it."""

from comfy_api.latest import io, ui

from ..smra_core.lora.reader import load_lora
from ..smra_core.lora.report import describe_lora, render_report


class InspectLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        import folder_paths

        return io.Schema(
            node_id="SMRAInspectLoRA",
            display_name="SMRA Inspect LoRA",
            category="SMRABooth",
            description=(
                "Says what is in a WAN LoRA file of any kind: which layers, how strong in which blocks, its "
                "rank, what it was trained on. With a MODEL it also says whether the two fit."
            ),
            inputs=[
                io.Combo.Input(
                    "file", options=folder_paths.get_filename_list("loras"), tooltip="A file in models/loras."
                ),
                io.Model.Input("model", optional=True, tooltip="The WAN that it is meant for."),
            ],
            outputs=[io.String.Output(display_name="report")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, file: str, model=None) -> io.NodeOutput:
        import folder_paths

        from .host.denoiser import spec_of

        spec = None if model is None else spec_of(model)
        text = render_report(
            describe_lora(load_lora(folder_paths.get_full_path_or_raise("loras", file), spec))
        )
        if spec is not None:
            text = f"Fits {spec.name}.\n{text}"
        return io.NodeOutput(text, ui=ui.PreviewText(text))
