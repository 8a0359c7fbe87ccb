"""The SMRA Layer Probe node: what each role and each range of blocks of a LoRA contributes on a MODEL."""

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..smra_core.evaluation.layer_probe import (
    LayerProbe,
    ProbeSettings,
    count_measurements,
    measure_layers,
    render_probe,
)
from ..smra_core.evaluation.probe_plot import draw_probe
from ..smra_core.evaluation.velocity_change import PROBE_SAMPLING, VelocityChange
from ..smra_core.lora.adapter import Lora
from ..smra_core.lora.reader import load_lora
from ..smra_core.wan.condition import move_inputs, stack_inputs
from ..smra_core.wan.flow_matching import sampling_sigmas
from .host.conditioning import match_captions, match_options
from .host.denoiser import read_spec, training_denoiser
from .host.extra_inputs import make_condition
from .host.model_patches import check_patches
from .host.widgets import log_notes
from .patching.chosen_lora import read_file_state
from .training.settings_widgets import Widget, make_widgets, update_settings

PROBED = (
    Widget("keep", dict(min=0.05, max=1.0, step=0.05)),
    Widget("block_ranges", dict(min=1, max=40)),
)
SAMPLED = (
    Widget("steps", dict(min=1, max=100)),
    Widget("shift", dict(min=0.01, max=100.0, step=0.01)),
    # A widget named `seed` would get ComfyUI's own control that changes it after every run.
    Widget("seed", dict(min=0, max=2**63 - 1), id="probe_seed"),
)


class LayerProbeNode(io.ComfyNode):
    """Node that measures the layers of a LoRA on a MODEL."""

    @classmethod
    def define_schema(cls):
        import folder_paths

        return io.Schema(
            node_id="SMRALayerProbe",
            display_name="SMRA Layer Probe",
            category="SMRABooth",
            description=(
                "Measures which layers of a LoRA do its work on your model: each kind of layer (Q, K, V, O, "
                "FFN) and each range of blocks alone, with all others at zero, and each left out. The whole "
                "LoRA is 100 %. It also finds a plan of fewer layers that keeps a chosen share of the effect."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The WAN model that the LoRA is for, without LoRAs on it."),
                io.Combo.Input(
                    "file",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="LoRA file in models/loras.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="A prompt with the LoRA's own words. For image to video, with its image.",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="An empty latent video of the size to measure at. A small and short one, such as "
                    f"{PROBE_SAMPLING.width}x{PROBE_SAMPLING.height} and {PROBE_SAMPLING.frames} frames, is "
                    "enough; a larger one takes longer.",
                ),
                *make_widgets(ProbeSettings(), PROBED),
                *make_widgets(PROBE_SAMPLING, SAMPLED),
            ],
            outputs=[
                io.String.Output(
                    display_name="plan",
                    tooltip="Layers that keep the chosen share of the effect, for the custom layers of SMRA "
                    "Loader Options or SMRA Training Options.",
                ),
                io.Image.Output(display_name="picture", tooltip="The chart of all shares."),
                io.String.Output(display_name="report", tooltip="The shares as a table of text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, file: str, positive, latent, **widgets) -> io.NodeOutput:
        import folder_paths

        settings = update_settings(ProbeSettings(), PROBED, widgets)
        sampling = update_settings(PROBE_SAMPLING, SAMPLED, widgets)
        lora = load_lora(folder_paths.get_full_path_or_raise("loras", file), read_spec(model)).lora
        shape = tuple(latent["samples"].shape[1:])
        with torch.inference_mode(False), torch.no_grad():
            probe = measure_model(model, lora, positive, shape, settings, sampling)
        text = render_probe(probe)
        picture = torch.from_numpy(np.asarray(draw_probe(probe)).copy()).float()[None] / 255
        return io.NodeOutput(str(probe.plan), picture, text, ui=ui.PreviewImage(picture, cls=cls))

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_) -> str:
        """Return a text that changes with the file, so that one replaced under its name is read anew."""
        return read_file_state(file)


def measure_model(
    model, lora: Lora, positive, shape: tuple[int, ...], settings: ProbeSettings, sampling
) -> LayerProbe:
    """Measure a LoRA on a MODEL, with latents of shape `C f h w`. Call outside of inference mode.

    Raises ValueError for a conditioning of several prompts, for latents of another model, and for a MODEL
    that is no WAN.
    """
    _check_shape(shape, read_spec(model).latents.channels)
    notes = list(check_patches(model))
    (caption,), contexts = match_captions(positive, 1)
    (options,) = match_options(positive, 1)
    condition, more = make_condition(model, options, contexts[caption], shape)
    log_notes([*notes, *more])
    start = torch.randn(1, *shape, generator=torch.Generator().manual_seed(sampling.seed))
    with training_denoiser(model) as denoiser:
        device = denoiser.patcher.load_device
        for pair in lora.values():
            pair.to(device, denoiser.dtype)
        extra = move_inputs(stack_inputs([condition.inputs]), device, denoiser.dtype)
        measure = VelocityChange(denoiser, contexts[caption][None].to(device), extra)
        measure.record(lora, start.to(device), sampling_sigmas(sampling.steps, sampling.shift).tolist())
        return measure_layers(lora, measure, settings, _make_progress(count_measurements(lora, settings)))


def _check_shape(shape: tuple[int, ...], channels: int) -> None:
    if len(shape) != 4 or shape[0] != channels:
        raise ValueError(
            f"The latent is {shape} (channels, frames, height, width); this model needs {channels} channels. "
            "Connect the empty latent video of its own VAE."
        )


def _make_progress(total: int):
    """Return the function to call after each measurement; it raises when the user cancels."""
    import comfy.model_management as management
    import comfy.utils

    bar = comfy.utils.ProgressBar(total)

    def report() -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update(1)

    return report
