"""Rows of what is computed once before training: DINOv2's features, latents, and the reference flow."""

from collections.abc import Callable, Iterator

import torch

from smra_core.encoders.dinov2 import DinoV2, choose_dtype
from smra_core.standalone.diffusers_wan import DiffusersCodec
from tests.benchmarks.gpu.meter import Row, measured
from tests.benchmarks.gpu.models import made_on, make_flow_net, make_vae
from tests.benchmarks.gpu.sizes import Sizes

PART, TIMES = "prepared once", 3


def list_preparation_cases(sizes: Sizes, device) -> Iterator[tuple[Row, Callable[[Row], None]]]:
    """Yield each encoder on its input: a picture, or the clip."""
    motion, subject = sizes.motion, sizes.subject

    def repeat(row: Row, compute: Callable[[], object]) -> None:
        with measured(row, device) as meter, torch.no_grad():
            for _ in range(TIMES):
                compute()
                meter.mark()

    def dinov2(config) -> Callable[[Row], None]:
        def work(row: Row) -> None:
            with made_on(device, choose_dtype(device, config)):
                net = DinoV2(config)
            picture = torch.rand(1, 3, subject.height, subject.width, device=device)
            repeat(row, lambda: net.extract_patch_features(picture))

        return work

    def encode(row: Row) -> None:
        codec = DiffusersCodec(make_vae(sizes, device))
        clip = torch.rand(1, 3, motion.frames, motion.height, motion.width, device=device) * 2 - 1
        repeat(row, lambda: codec.encode(clip))

    def flow(row: Row) -> None:
        net = make_flow_net(sizes, device)
        frames = torch.rand(motion.frames, 3, motion.height, motion.width, device=device) * 255
        repeat(row, lambda: net.compute_pair_flows(frames))

    for name, config in sizes.dinov2.items():
        yield Row(PART, f"DINOv2 {name}, one picture"), dinov2(config)
    yield Row(PART, "VAE, latents of the clip"), encode
    yield Row(PART, f"{sizes.flow.name}, flow of the clip"), flow
