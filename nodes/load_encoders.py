"""The loader nodes of DINOv2, SEA-RAFT and SAM: they choose a file, which is read only when it is needed."""

from comfy_api.latest import io

from .host.model_folders import DINOV2, SAM, SEA_RAFT, WeightFolder
from .host.wire_types import DinoV2Type, SamType, SeaRaftType


def _make_schema(kind: WeightFolder, node_id: str, output, about: str) -> io.Schema:
    name = node_id.removeprefix("SMRALoad").lower()
    return io.Schema(
        node_id=node_id,
        display_name=f"SMRA Load {kind.name}",
        category="SMRABooth",
        description=about,
        inputs=[io.Combo.Input("file", options=kind.list_choices(), tooltip=kind.tooltip)],
        outputs=[output.Output(display_name=name)],
    )


def check_choice(kind: WeightFolder, choice: str | None) -> bool | str:
    """Return True for a file that can be found, else the reason, as ComfyUI's validation of inputs wants it.

    A workflow may name a file in another folder of the kind, which the list of choices does not show. A
    linked input has no value yet.
    """
    try:
        return choice is None or bool(kind.find(choice))
    except ValueError as error:
        return str(error)


class LoadDINOv2(io.ComfyNode):
    """Node that chooses DINOv2's weight file."""

    @classmethod
    def define_schema(cls):
        about = (
            "Chooses the weights of DINOv2, whose features of each patch the subject LoRA is aligned with."
        )
        return _make_schema(DINOV2, "SMRALoadDINOv2", DinoV2Type, about)

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return check_choice(DINOV2, file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(DINOV2.find(file))


class LoadSEARAFT(io.ComfyNode):
    """Node that chooses SEA-RAFT's weight file."""

    @classmethod
    def define_schema(cls):
        about = "Chooses the weights of SEA-RAFT, which measures how things move between two frames."
        return _make_schema(SEA_RAFT, "SMRALoadSEARAFT", SeaRaftType, about)

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return check_choice(SEA_RAFT, file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(SEA_RAFT.find(file))


class LoadSAM(io.ComfyNode):
    """Node that chooses SAM's weight file."""

    @classmethod
    def define_schema(cls):
        about = "Chooses the weights of SAM, which finds the subject in pictures that have no mask."
        return _make_schema(SAM, "SMRALoadSAM", SamType, about)

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return check_choice(SAM, file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(SAM.find(file))
