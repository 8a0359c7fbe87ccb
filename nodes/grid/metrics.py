"""Inputs and networks with which the nodes of grids measure their videos, as SMRA Evaluate Video does."""

from pathlib import Path
from typing import Any, NamedTuple

from comfy_api.latest import io
from torch import Tensor

from ...smra_core.encoders.sea_raft import load_sea_raft
from ...smra_core.evaluation.cell_metrics import CellMeter, CellMetrics, Networks
from ...smra_core.evaluation.evaluate import EvaluationModels, References
from ...smra_core.evaluation.picture_encoder import load_picture_encoder
from ...smra_core.storage.content_hash import fingerprint_weights, hash_content
from ..host.images import crop_images
from ..host.wire_types import DinoV2Type, SeaRaftType

METRIC_INPUTS = ("subject", "motion", "dinov2", "sea_raft")


def make_metric_inputs() -> list:
    """Return the optional inputs that add metrics to a grid's report."""
    return [
        io.Image.Input(
            "subject", optional=True,
            tooltip="Pictures of the subject. With dinov2, every video's likeness to them is in the report.",
        ),
        io.Image.Input(
            "motion", optional=True,
            tooltip="Frames of the motion's clip, at the frame rate of the videos. With sea_raft, every "
            "video's motion fidelity to them is in the report.",
        ),
        DinoV2Type.Input(
            "dinov2", optional=True,
            tooltip="DINOv2. It adds likeness and consistency of the subject to the report.",
        ),
        SeaRaftType.Input(
            "sea_raft", optional=True, tooltip="SEA-RAFT. It adds motion fidelity to the report."
        ),
    ]  # fmt: skip


class GridMeter(NamedTuple):
    """Measures the videos of a grid against one subject and one motion."""

    meter: CellMeter
    subject: Tensor | None
    """IMAGE `N H W 3`."""
    motion: Tensor | None

    @classmethod
    def read(cls, values: dict[str, Any]) -> "GridMeter | None":
        """Return the meter that the inputs give; None where no network is connected."""
        dinov2, sea_raft = values.get("dinov2"), values.get("sea_raft")
        if dinov2 is None and sea_raft is None:
            return None
        key = " ".join("none" if file is None else fingerprint_weights(file) for file in (dinov2, sea_raft))
        networks = Networks(key, lambda: _load_models(dinov2, sea_raft))
        return cls(CellMeter(networks), values.get("subject"), values.get("motion"))

    def measure(self, video: Path, prompt: str) -> CellMetrics:
        """Return the metrics of a video in a file."""
        contents = ["" if each is None else hash_content(each) for each in (self.subject, self.motion)]
        key = hash_content("\n".join([prompt, *contents]).encode())
        return self.meter.measure(video, key, lambda frames: self._make_references(prompt, frames))

    def _make_references(self, prompt: str, frames: Tensor) -> References:
        pictures = None if self.subject is None else list(self.subject[..., :3].movedim(-1, 1).float())
        size = frames.shape[-1], frames.shape[-2]
        motion = None if self.motion is None else crop_images(self.motion, size)[0]
        return References(prompt, pictures, motion)


def _load_models(dinov2: Path | None, sea_raft: Path | None) -> EvaluationModels:
    import comfy.model_management as management

    device = management.get_torch_device()
    return EvaluationModels(
        dino=None if dinov2 is None else load_picture_encoder(dinov2, device),
        sea_raft=None if sea_raft is None else load_sea_raft(sea_raft).to(device),
    )
