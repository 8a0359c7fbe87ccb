"""Write sea_raft_golden.safetensors: flow by ptlflow's SEA-RAFT for weights and frames anyone can refill.

Run with an interpreter that has ptlflow (0.4.2 was used): python tests/core/golden/make_sea_raft_golden.py
With a size, a file of frames and a file for the flow it writes the flow of those frames instead; so the tests
ask a ptlflow that lies in an environment of its own.
"""

import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).with_name("sea_raft_golden.safetensors")
HEIGHT, WIDTH = 130, 163
STRIDE = 3
"""Every third pixel of the flow is kept."""


def seeded_weights(shapes):
    """{name: tensor} for {name: shape}; each depends on its name alone, in whatever order."""
    return {name: _seeded(name, tuple(shape)) for name, shape in shapes.items()}


def _seeded(name, shape):
    name = name.replace("downsample.1.", "bn3.")  # two names of one norm
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if last == "running_var":
        return torch.from_numpy(draw.uniform(0.5, 1.5, shape).astype(np.float32))
    values = draw.standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        values *= np.sqrt(0.8 / np.prod(shape[1:])).astype(np.float32)
    else:
        values = 0.1 * values + (1.0 if last == "weight" else 0.0)
    # At full size flows reach 1000 px, float32 noise 1 px; so they stay below 40 px, the noise at 1e-5.
    return torch.from_numpy(values * (0.1 if name == "flow_head.2.weight" else 1)).float()


def seeded_frames():
    """Two RGB frames, `2 3 HEIGHT WIDTH` in 0..255: soft noise, moved by (2, 1) pixels."""
    noise = (
        np.random.RandomState(7).uniform(0, 255, (1, 3, HEIGHT // 4 + 2, WIDTH // 4 + 2)).astype(np.float32)
    )
    soft = torch.nn.functional.interpolate(torch.from_numpy(noise), scale_factor=4.0, mode="bicubic").clamp(
        0, 255
    )
    return torch.cat([soft[..., 1 : HEIGHT + 1, 2 : WIDTH + 2], soft[..., :HEIGHT, :WIDTH]])


def ptlflow_net(size):
    """ptlflow's net of size "s" or "m" with the seeded weights."""
    import ptlflow

    net = ptlflow.get_model(f"sea_raft_{size}")
    net.load_state_dict(seeded_weights({k: v.shape for k, v in net.state_dict().items()}))
    return net.eval()


@torch.no_grad()
def ptlflow_flow(net, frames):
    """Its flow `2 H W` for our frames: it wants BGR in 0..1."""
    return net({"images": frames.flip(1)[None] / 255})["flows"][0, 0]


def main(arguments):
    if arguments:
        size, frames, flow = arguments
        save_file({"flow": ptlflow_flow(ptlflow_net(size), load_file(frames)["frames"]).contiguous()}, flow)
        return
    flows = {
        s: ptlflow_flow(ptlflow_net(s), seeded_frames())[:, ::STRIDE, ::STRIDE].contiguous() for s in "sm"
    }
    save_file(flows, GOLDEN, {"by": "ptlflow 0.4.2", "stride": str(STRIDE)})


if __name__ == "__main__":
    main(sys.argv[1:])
