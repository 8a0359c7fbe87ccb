"""The SMRA Load Subject Folder node: read a subject's pictures, masks and captions from a folder."""

import torch
from comfy_api.latest import io

from ..smra_core.data.subject_set import read_subject_set
from ..smra_core.training.sura import SubjectSettings
from ..smra_core.wan.spec import LATENTS_21
from .data.file_states import describe_files
from .data.inputs import IN_THE_INPUT_FOLDER, make_caption_input, make_folder_input, make_size_inputs
from .data.outputs import encode_captions, get_masks
from .host.images import as_image
from .host.input_folder import resolve_input
from .host.widgets import show_notes

DEFAULTS = SubjectSettings()


class LoadSubjectFolder(io.ComfyNode):
    """Node that reads pictures, masks and captions from a folder."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SMRALoadSubjectFolder",
            display_name="SMRA Load Subject Folder",
            category="SMRABooth",
            description=(
                "Reads a subject's pictures, masks and captions from a folder: one with a metadata.csv, as "
                "the authors have it, or plain pictures with masks/ and .txt captions beside them."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="WAN's text encoder, for the captions."),
                make_folder_input(IN_THE_INPUT_FOLDER),
                make_caption_input("A picture of sks dog"),
                *make_size_inputs(DEFAULTS.width, DEFAULTS.height),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The pictures, cropped to width and height."),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="Masks of the pictures; black all over where the folder has none.",
                ),
                io.Conditioning.Output(display_name="positive", tooltip="One prompt for each picture."),
                io.String.Output(
                    display_name="captions",
                    tooltip="The prompts in words, one a line, for the training node's captions.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, folder: str, caption: str, width: int, height: int) -> io.NodeOutput:
        LATENTS_21.check_size(width, height)
        found = read_subject_set(resolve_input(folder), (width, height), caption=caption.strip() or None)
        show_notes(cls, f"{len(found.images)} pictures", found.notes)
        pictures = torch.stack([image.pixels for image in found.images])
        masks = torch.cat([get_masks(image) for image in found.images])
        captions = [image.caption for image in found.images]
        return io.NodeOutput(as_image(pictures), masks, encode_captions(clip, captions), "\n".join(captions))

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **_) -> str:
        return describe_files(folder)
