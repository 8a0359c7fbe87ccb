"""The SMRA Evaluate Video node: the paper's metrics of a video, as far as their networks are connected."""

from contextlib import ExitStack
from pathlib import Path

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..smra_core.data.crop import to_pixels
from ..smra_core.encoders.sea_raft import load_sea_raft
from ..smra_core.evaluation.contact_sheet import SheetRow, choose_indices, draw_sheet, to_sheet_picture
from ..smra_core.evaluation.evaluate import Evaluation, EvaluationModels, References, evaluate_video
from ..smra_core.evaluation.evaluation_table import render_evaluations, to_json
from ..smra_core.evaluation.picture_encoder import load_picture_encoder
from ..smra_core.storage.on_demand import loaded_on_first_use
from .host.clip_metrics import HostClip
from .host.images import as_image, crop_images
from .host.wire_types import DinoV2Type, SeaRaftType

SHOWN = 6
"""Number of frames of each row of the picture."""


class EvaluateVideo(io.ComfyNode):
    """Node that measures a video by the paper's metrics."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRAEvaluateVideo",
            display_name="SMRA Evaluate Video",
            category="SMRABooth",
            description=(
                "Measures a video by the paper's metrics: likeness to the subject's pictures, to the "
                "prompt and to the motion of a clip. Each input adds its metrics; what is not connected "
                "is left out, and the report names it."
            ),
            inputs=[
                io.Image.Input("frames", tooltip="Frames of the video, two at least."),
                io.String.Input(
                    "prompt", default="", optional=True, tooltip="Prompt of the video, for CLIP-T."
                ),
                io.Image.Input(
                    "subject",
                    optional=True,
                    tooltip="Pictures of the subject, for CLIP-I and DINO-I. More pictures of other views "
                    "make them fairer.",
                ),
                io.Image.Input(
                    "motion",
                    optional=True,
                    tooltip="Frames of the motion's clip, at the frame rate of the video, for motion "
                    "fidelity. They are cropped to the video's size.",
                ),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="CLIP Vision, for CLIP-I and temporal consistency."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="OpenAI's clip_l.safetensors (Load CLIP, type stable_diffusion), for CLIP-T. The "
                    "CLIP Vision must be ViT-L/14's. WAN's own text encoder has no such embedding.",
                ),
                DinoV2Type.Input(
                    "dinov2", optional=True, tooltip="DINOv2, for DINO-I and subject consistency."
                ),
                SeaRaftType.Input("sea_raft", optional=True, tooltip="SEA-RAFT, for motion fidelity."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The same text as on the node."),
                io.String.Output(display_name="numbers", tooltip="The metrics as JSON, for scripts."),
                io.Image.Output(
                    display_name="picture",
                    tooltip="Frames of the video above those of the motion's clip, with the metrics.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        frames,
        prompt="",
        subject=None,
        motion=None,
        clip_vision=None,
        clip=None,
        dinov2=None,
        sea_raft=None,
    ) -> io.NodeOutput:
        with torch.no_grad():
            video = frames[..., :3].movedim(-1, 1).float()
            pictures = None if subject is None else list(subject[..., :3].movedim(-1, 1).float())
            fitted = None if motion is None else crop_images(motion, (video.shape[3], video.shape[2]))[0]
            encoder = None if clip_vision is None else HostClip(clip_vision, clip)
            references = References(prompt, pictures, fitted)
            result = measure(video, references, encoder, dinov2, sea_raft)
        text = render_evaluations({"video": result})
        picture = draw_picture(video, fitted, result)
        return io.NodeOutput(text, to_json({"video": result}), picture, ui=ui.PreviewText(text))


def measure(
    video: Tensor,
    references: References,
    clip: HostClip | None,
    dinov2: Path | None,
    sea_raft: Path | None,
) -> Evaluation:
    """Measure a video `F 3 H W`; the networks of the two files are loaded for it and freed after."""
    import comfy.model_management as management

    device = management.get_torch_device()
    with ExitStack() as stack:
        dino = flow = None
        if dinov2 is not None:
            dino = stack.enter_context(loaded_on_first_use(lambda: load_picture_encoder(dinov2, device)))()
        if sea_raft is not None:
            flow = stack.enter_context(loaded_on_first_use(lambda: load_sea_raft(sea_raft).to(device)))()
        return evaluate_video(video, references, EvaluationModels(clip, dino, flow))


def draw_picture(video: Tensor, motion: Tensor | None, result: Evaluation) -> Tensor:
    """Return an IMAGE `1 H W 3`: frames of the video and of the motion's clip, below the metrics."""
    clips = {"video": video} if motion is None else {"video": video, "motion": motion}
    indices = choose_indices(min(map(len, clips.values())), SHOWN)
    rows = [SheetRow(name, [to_sheet_picture(clip[i]) for i in indices]) for name, clip in clips.items()]
    caption = ", ".join(f"{name} {value:.3f}" for name, value in result.values.items())
    page = draw_sheet(rows, [f"frame {index}" for index in indices], caption or "nothing was measured")
    return as_image(to_pixels(page)[None])
