"""The SMRA Preview Optical Flow node: the motion of a clip as colors, before anything is trained on it."""

from pathlib import Path

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..smra_core.encoders.sea_raft import load_sea_raft
from ..smra_core.evaluation.flow_colors import color_flow, draw_color_wheel, measure_fastest
from ..smra_core.storage.on_demand import loaded_on_first_use
from .host.images import as_image
from .host.inference_tensors import as_normal_tensor
from .host.widgets import show_text
from .host.wire_types import SeaRaftType

_WHEEL_SHARE = 0.2
"""Side of the color wheel, as a share of the picture's shorter side."""


class PreviewOpticalFlow(io.ComfyNode):
    """Node that measures the optical flow of a clip and shows it as colors."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRAPreviewOpticalFlow",
            display_name="SMRA Preview Optical Flow",
            category="SMRABooth",
            description=(
                "Measures how a clip moves and shows it in the usual colors of optical flow: the hue is the "
                "direction, as on the wheel in the corner (right is red, down yellow, left light blue, up "
                "violet); paler is slower, and white stands still. What is white or flickers cannot be "
                "learned."
            ),
            inputs=[
                io.Image.Input(
                    "frames", tooltip="Frames of the clip, two at least. More frames give more pictures."
                ),
                SeaRaftType.Input(
                    "sea_raft",
                    tooltip="SEA-RAFT, the model that measures optical flow, from SMRA Load SEA-RAFT.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="flow",
                    tooltip="One picture for each pair of frames, all on one scale of speed.",
                ),
                io.Float.Output(display_name="speed", tooltip="Average motion in pixels per frame."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, frames, sea_raft: Path) -> io.NodeOutput:
        with torch.inference_mode(False), torch.no_grad():
            flow = measure_flow(as_normal_tensor(frames)[..., :3].movedim(-1, 1), sea_raft)
            pictures, speed = as_image(color_clip(flow)), flow.norm(dim=1).mean().item()
        show_text(cls, f"{len(flow)} pairs, {speed:.2f} pixels a frame on average")
        return io.NodeOutput(pictures, speed, ui=ui.PreviewImage(pictures))


def measure_flow(frames: Tensor, sea_raft: Path) -> Tensor:
    """Return the optical flow `F-1 2 H W` in pixels, on the CPU, of frames `F 3 H W` in [0, 1].

    Raise ValueError for fewer than two frames.
    """
    import comfy.model_management as management

    if len(frames) < 2:
        raise ValueError(f"Optical flow needs two frames, got {len(frames)}. Load a clip, not a picture.")
    device = management.get_torch_device()
    with loaded_on_first_use(lambda: load_sea_raft(sea_raft).to(device)) as net:
        return net().compute_pair_flows(frames.to(device) * 255).cpu()


def color_clip(flow: Tensor) -> Tensor:
    """Return pictures `P 3 H W` in [0, 1] of a flow `P 2 H W` in pixels, with the color wheel in a corner.

    All pictures share one scale of speed.
    """
    fastest = measure_fastest([flow])
    pictures = torch.stack([color_flow(pair, fastest) for pair in flow])
    side = max(8, int(_WHEEL_SHARE * min(flow.shape[-2:])))
    pictures[:, :, -side:, -side:] = draw_color_wheel(side)
    return pictures
