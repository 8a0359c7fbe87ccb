"""probe-layers: measure what each role and each range of blocks of a LoRA contributes."""

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

from ..evaluation.layer_probe import (
    LayerProbe,
    ProbeSettings,
    count_measurements,
    measure_layers,
    render_probe,
)
from ..evaluation.probe_plot import draw_probe
from ..evaluation.velocity_change import PROBE_SAMPLING, VelocityChange
from ..lora.reader import load_lora
from ..standalone.output_file import check_output_file, write_or_rescue
from ..wan.flow_matching import sampling_sigmas
from ..wan.sampler import initial_noise
from .model_options import add_model, open_backend
from .options import add_choice, add_json, add_option
from .settings_options import add_settings, read_settings

PICTURE_ENDINGS = (".png",)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("lora", type=Path, help="LoRA file in any dialect, or PEFT's adapter folder.")
    parser.add_argument("prompt", help="Prompt that the LoRA was trained for, such as 'a sks dog'.")
    add_choice(parser)
    add_option(parser, "--picture", "Picture of the chart to write, .png.", Path("layers.png"), type=Path)
    add_settings(parser, ProbeSettings())
    add_settings(parser, PROBE_SAMPLING, ("steps", "shift", "width", "height", "frames", "seed"))
    add_model(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Measure the LoRA, write the chart, and print the shares and the plan."""
    settings, sampling = read_settings(args, ProbeSettings()), read_settings(args, PROBE_SAMPLING)
    check_output_file(args.picture, PICTURE_ENDINGS)
    backend = open_backend(args)
    spec, device = backend.spec, backend.device
    if spec.extra_channels:
        raise ValueError(
            f"{spec.name} makes videos from an image, and here they are made from text alone. Give the "
            "text-to-video model of the same size."
        )
    spec.latents.check_size(sampling.width, sampling.height)
    lora = load_lora(args.lora, spec, args.expert, args.adapter).lora
    for pair in lora.values():
        pair.to(device, backend.dtype)
    context = backend.encode_captions([args.prompt])[args.prompt][None].to(device)
    start = initial_noise(sampling, spec.latents).to(device)
    sigmas = sampling_sigmas(sampling.steps, sampling.shift).tolist()
    with backend.denoiser_for_sampling(sampling, 1) as denoiser, torch.no_grad():
        measure = VelocityChange(denoiser(), context)
        measure.record(lora, start, sigmas)
        with tqdm(total=count_measurements(lora, settings), desc="measuring", unit="part") as bar:
            probe = measure_layers(lora, measure, settings, lambda: bar.update())
    picture = write_or_rescue(args.picture, draw_probe(probe).save)
    print(_to_json(probe, picture) if args.json else f"{render_probe(probe)}\n{picture}")


def _to_json(probe: LayerProbe, picture: Path) -> str:
    """Return the shares of roles and of ranges of blocks, the plan, and the path of the chart."""
    groups = {
        name: [share._asdict() | {"plan": str(share.plan)} for share in shares]
        for name, shares in (("roles", probe.roles), ("blocks", probe.blocks))
    }
    return json.dumps({**probe._asdict(), **groups, "plan": str(probe.plan), "path": str(picture)})
