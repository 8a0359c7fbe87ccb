"""The SMRA Preview Optical Flow node: the motion of a clip as colors, before anything is trained on it."""

from pathlib import Path

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..smra_core.encoders.sea_raft import load_sea_raft
from ..smra_core.evaluation.flow_colors import LEAST_SPEED, color_wheel, flow_to_rgb
from ..smra_core.storage.on_demand import loaded_on_first_use
from .host.images import as_image
from .host.inference_tensors import as_normal_tensor
from .host.widgets import show_text
from .host.wire_types import SeaRaftType

_FASTEST = 0.99
"""Quantile of the speeds that gets full color: a few wild pixels would make the rest white."""
_WHEEL_SHARE = 0.2


class PreviewOpticalFlow(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRAPreviewOpticalFlow",
            display_name="SMRA Preview Optical Flow",
            category="SMRABooth",
            description=(
                "Measures how a clip moves and shows it: the hue is the direction, as on the wheel in the "
                "corner, paler is slower, white stands still. What is white or flickers cannot be learned."
            ),
            inputs=[
                io.Image.Input("frames", tooltip="The clip, frame by frame; two at least."),
                SeaRaftType.Input("sea_raft", tooltip="From SMRA Load SEA-RAFT."),
            ],
            outputs=[
                io.Image.Output(display_name="flow", tooltip="One picture for each pair of frames."),
                io.Float.Output(display_name="speed", tooltip="Mean pixels that things move in a frame."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, frames, sea_raft: Path) -> io.NodeOutput:
        with torch.inference_mode(False), torch.no_grad():
            flow = measured(as_normal_tensor(frames)[..., :3].movedim(-1, 1), sea_raft)
            pictures, speed = as_image(colored(flow)), flow.norm(dim=1).mean().item()
        show_text(cls, f"{len(flow)} pairs, {speed:.2f} pixels a frame on average")
        return io.NodeOutput(pictures, speed, ui=ui.PreviewImage(pictures))


def measured(frames: Tensor, sea_raft: Path) -> Tensor:
    """Optical flow `F-1 2 H W` in pixels, on the CPU, of frames `F 3 H W` in [0, 1]."""
    import comfy.model_management as management

    if len(frames) < 2:
        raise ValueError(f"Optical flow needs two frames, got {len(frames)}. Load a clip, not a picture.")
    device = management.get_torch_device()
    with loaded_on_first_use(lambda: load_sea_raft(sea_raft).to(device)) as net:
        return net().pair_flows(frames.to(device) * 255).cpu()


def colored(flow: Tensor) -> Tensor:
    """Pictures `P 3 H W` in [0, 1] on one scale for the whole clip, with the color wheel in a corner."""
    speeds = flow.norm(dim=1).flatten().sort().values
    fastest = max(LEAST_SPEED, speeds[int(_FASTEST * (len(speeds) - 1))].item())
    pictures = torch.stack([flow_to_rgb(pair, fastest) for pair in flow])
    side = max(8, int(_WHEEL_SHARE * min(flow.shape[-2:])))
    pictures[:, :, -side:, -side:] = color_wheel(side)
    return pictures
