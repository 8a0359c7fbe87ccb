"""The loaders of DINOv2, SEA-RAFT and SAM: they choose a file, which is read only when it is needed."""

from comfy_api.latest import io

from .host.model_folders import DINOV2, SAM, SEA_RAFT, WeightFolder
from .host.wire_types import DinoV2Type, SamType, SeaRaftType


def _schema(kind: WeightFolder, node_id: str, output, about: str) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=f"SMRA Load {kind.name}",
        category="SMRABooth",
        description=about,
        inputs=[io.Combo.Input("file", options=kind.choices(), tooltip=kind.tooltip)],
        outputs=[output.Output(display_name=node_id.removeprefix("SMRALoad").lower())],
    )


class LoadDINOv2(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        about = "Chooses the net that tells the subject LoRA what the subject looks like, patch by patch."
        return _schema(DINOV2, "SMRALoadDINOv2", DinoV2Type, about)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(DINOV2.path(file))


class LoadSEARAFT(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        about = "Chooses the net that measures how things move between two frames, for the motion LoRA."
        return _schema(SEA_RAFT, "SMRALoadSEARAFT", SeaRaftType, about)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(SEA_RAFT.path(file))


class LoadSAM(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        about = "Chooses the net that finds the subject in pictures that come without a mask."
        return _schema(SAM, "SMRALoadSAM", SamType, about)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(SAM.path(file))
