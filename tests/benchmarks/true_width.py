"""Training of both LoRAs on the real WAN at the width of a published model, from files to files, by the
command line.

Random weights (nothing is downloaded): DiT of 2 blocks, of 1.3B width 1536, 12 heads, ffn 8960, of 14B width
5120, 40 heads, ffn 13824; VAE of width 96; DINOv2 S and SEA-RAFT S. On 14B the motion is trained on the
high-noise expert of Wan 2.2 and the subject on the low-noise one. Pictures and clip are real files in the
authors' layout. Prints wall time, CPU time and peak memory of each command:
`python tests/benchmarks/true_width.py DATA [--model 14b-i2v] [--frames 9] [--side 128]`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from smra_core.encoders.dinov2_files import DinoV2Config
from smra_core.encoders.sea_raft import SeaRaft, save_sea_raft
from smra_core.encoders.sea_raft_config import SEA_RAFT_S

STEPS = 3
DINOV2_S = DinoV2Config(width=384, depth=12, heads=6, hidden=1536, gated=False, grid=37, registers=0)

WIDTHS_14B = dict(heads=40, ffn=13824)
MODELS = {
    "1.3b-t2v": dict(heads=12, ffn=8960),
    "14b-t2v": WIDTHS_14B,
    "14b-i2v": WIDTHS_14B | dict(image_channels=20),
}
EXPERTS = {"train-subject": "low-noise expert", "train-motion": "high-noise expert"}

CORE_TESTS = Path(__file__).parents[1] / "core"


def write_models(folder, model):
    """Write random weights of true width; return the options that name the WAN model."""
    sys.path.append(str(CORE_TESTS))
    from random_models import Sizes, write_random_dinov2, write_random_wan

    sizes = Sizes(**MODELS[model], blocks=2, text=4096, freq=256, vae=96)
    options = write_random_wan(folder, sizes, "native")
    write_random_dinov2(folder / "dinov2.safetensors", DINOV2_S)
    flow = SeaRaft(SEA_RAFT_S)
    flow.flow_head[2].weight.data *= 0.1  # untrained it would see motions of a thousand pixels
    save_sea_raft(flow, folder / "sea_raft.safetensors", torch.float32)
    return options


def measure_command(name, *arguments):
    """Run one command of smra_core and print its time and memory; return its last line."""
    command = [sys.executable, "-m", "smra_core", name, *map(str, arguments)]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)  # its own peak, not that of the largest command so far
    if status:
        raise SystemExit(f"{name} failed: {' '.join(command)}")
    wall, cpu = time.monotonic() - started, used.ru_utime + used.ru_stime
    print(f"{name}: {wall:.0f} s wall, {cpu:.0f} s CPU, peak {used.ru_maxrss / 2**20:.2f} GB", flush=True)
    return output.strip().splitlines()[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="Folder with subject_customized/ and motion_customized/.")
    parser.add_argument("--model", choices=MODELS, default="1.3b-t2v", help="(default: 1.3b-t2v)")
    parser.add_argument("--frames", type=int, default=9, help="Frames of the clip. (default: 9)")
    parser.add_argument("--side", type=int, default=128, help="Width and height in pixels. (default: 128)")
    args = parser.parse_args()
    subject = args.data / "subject_customized" / "dog"
    motion = args.data / "motion_customized" / "video" / "person_walking"
    size = ["--width", args.side, "--height", args.side]
    with tempfile.TemporaryDirectory() as folder:
        models, out = Path(folder), Path(folder) / "out"
        shared = [*write_models(models, args.model), "--steps", STEPS, "--accumulate", 1, "--out", out, *size]
        own = {
            "train-subject": [subject, "--dinov2", models / "dinov2.safetensors"],
            "train-motion": [motion, "--sea-raft", models / "sea_raft.safetensors", "--frames", args.frames],
        }
        for name, arguments in own.items():
            noise = ["--noise-range", EXPERTS[name]] if args.model.startswith("14b") else []
            lora = measure_command(name, *arguments, *shared, *noise)
            print(subprocess.check_output([sys.executable, "-m", "smra_core", "inspect", lora], text=True))


if __name__ == "__main__":
    main()
