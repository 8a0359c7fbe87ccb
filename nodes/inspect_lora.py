"""The SMRA Inspect LoRA node: show what a LoRA file holds, and whether it fits a WAN model."""

from comfy_api.latest import io, ui

from ..smra_core.lora.reader import load_lora
from ..smra_core.lora.report import describe_lora, render_report
from .patching.chosen_lora import read_file_state


class InspectLoRA(io.ComfyNode):
    """Node that shows what a LoRA file holds."""

    @classmethod
    def define_schema(cls):
        import folder_paths

        return io.Schema(
            node_id="SMRAInspectLoRA",
            display_name="SMRA Inspect LoRA",
            category="SMRABooth",
            description=(
                "Shows what is in a WAN LoRA file of any kind: which layers, how strong in which blocks, its "
                "rank, what it was trained on. With a MODEL it also checks whether the two fit."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="LoRA file in models/loras.",
                ),
                io.Model.Input("model", optional=True, tooltip="WAN model that the LoRA is meant for."),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="The same text as on the node.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, file: str, model=None) -> io.NodeOutput:
        import folder_paths

        from .host.denoiser import read_spec

        spec = None if model is None else read_spec(model)
        text = render_report(
            describe_lora(load_lora(folder_paths.get_full_path_or_raise("loras", file), spec))
        )
        if spec is not None:
            text = f"Fits {spec.name}.\n{text}"
        return io.NodeOutput(text, ui=ui.PreviewText(text))

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_) -> str:
        """Return a text that changes with the file, so that one replaced under its name is read anew."""
        return read_file_state(file)
