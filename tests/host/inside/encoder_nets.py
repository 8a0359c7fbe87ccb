"""Encoders of random weights in the published layouts, small enough for a test."""

import torch
from random_wan import pack
from safetensors.torch import save_file

DINO_WIDTH = 384
"""ViT-S: the smallest whose heads are known from its width."""


def dinov2_file(folder):
    """A DINOv2 of two blocks."""
    dinov2, files = (
        pack("smra_core.encoders.dinov2"),
        pack("smra_core.encoders.dinov2_files"),
    )
    torch.manual_seed(11)
    net = dinov2.DinoV2(
        files.DinoV2Config(width=DINO_WIDTH, depth=2, heads=6, hidden=64, gated=False, grid=4, registers=0)
    )
    for parameter in net.vit.parameters():  # the net is made to be filled from a file
        parameter.data.normal_(std=0.1)
    file = folder / "dino.safetensors"
    save_file({name: value.contiguous() for name, value in net.vit.state_dict().items()}, file)
    return file


def sea_raft_file(folder):
    """A SEA-RAFT of the miniature's sizes."""
    sea_raft = pack("smra_core.encoders.sea_raft")
    config = pack("smra_core.encoders.sea_raft_config").SEA_RAFT_MINIATURE
    torch.manual_seed(6)
    file = folder / "flow.safetensors"
    sea_raft.save_sea_raft(sea_raft.SeaRaft(config), file, torch.float32)
    return file
