"""Widgets that the nodes that read data have in common."""

from comfy_api.latest import io

from ...smra_core.wan.spec import LATENTS_21, LATENTS_22, LatentSpace

IN_THE_INPUT_FOLDER = "Name of a folder in ComfyUI's input folder. A folder elsewhere needs a link there."
FRAME_RATES: dict[str, tuple[float | None, LatentSpace]] = {
    f"{LATENTS_21.fps:g} fps": (LATENTS_21.fps, LATENTS_21),
    "as they are": (None, LATENTS_21),
    f"{LATENTS_22.fps:g} fps (TI2V-5B)": (LATENTS_22.fps, LATENTS_22),
}
"""Choices of the frame rate: the rate that each reads at, and the latents of the models that it is for."""
USUAL_RATE = next(iter(FRAME_RATES))


def make_folder_input(about: str):
    """Return the widget for the folder; `about` is its tooltip."""
    return io.String.Input("folder", default="", tooltip=about)


def make_caption_input(example: str):
    """Return the widget for one caption of everything."""
    return io.String.Input(
        "caption",
        default="",
        tooltip=f"Caption of everything, such as '{example}'. Empty, the captions in the folder are used.",
    )


def make_size_inputs(width: int, height: int) -> list:
    """Return the two widgets of the size."""
    return [
        io.Int.Input(
            side,
            default=default,
            min=64,
            max=1280,
            step=16,
            tooltip=f"{side.capitalize()} that everything is scaled and cropped to; give the training node "
            "the same. Raising it shows finer detail and needs more memory.",
        )
        for side, default in (("width", width), ("height", height))
    ]


def make_frame_rate_input(about: str, optional: bool = False):
    """Return the widget for the frame rate; `about` is its tooltip."""
    return io.Combo.Input(
        "frame_rate", options=[*FRAME_RATES], default=USUAL_RATE, optional=optional, tooltip=about
    )


def make_own_sizes_input(what: str, optional: bool = False):
    """Return the widget that lets `what` keep its shape."""
    return io.Boolean.Input(
        "own_sizes",
        default=False,
        optional=optional,
        tooltip=f"Let each {what} keep its own shape, with at most as many pixels as width x height. Off, "
        "all are cropped to that size. Turn it on in SMRA Training Options as well.",
    )
