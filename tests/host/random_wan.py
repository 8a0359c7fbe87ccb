"""Random weights under WAN's native names, without the host: a text-to-video DiT and a LoRA for it."""

import torch
from torch import Tensor

DIM, HEAD, RANK = 256, 64, 4
LINEARS = {f"{kind}.{role}": (DIM, DIM) for kind in ("self_attn", "cross_attn") for role in "qkvo"}


def _matrix(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=generator) / columns**0.5


def dit(blocks: int, ffn: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "text_embedding.0": (DIM, 4096),
        "text_embedding.2": (DIM, DIM),
        "time_embedding.0": (DIM, 256),
        "time_embedding.2": (DIM, DIM),
        "time_projection.1": (6 * DIM, DIM),
        "head.head": (HEAD, DIM),
    }
    for i in range(blocks):
        linears = LINEARS | {"ffn.0": (ffn, DIM), "ffn.2": (DIM, ffn)}
        shapes |= {f"blocks.{i}.{path}": shape for path, shape in linears.items()}
    state = {f"{name}.weight": _matrix(generator, *shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    state["patch_embedding.weight"] = _matrix(generator, DIM, HEAD).reshape(DIM, 16, 1, 2, 2)
    state |= {"patch_embedding.bias": torch.zeros(DIM), "head.modulation": torch.zeros(1, 2, DIM)}
    for i in range(blocks):
        state |= {
            f"blocks.{i}.{kind}.norm_{x}.weight": torch.ones(DIM)
            for kind in ("self_attn", "cross_attn")
            for x in "qk"
        }
        state |= {
            f"blocks.{i}.norm3.weight": torch.ones(DIM),
            f"blocks.{i}.norm3.bias": torch.zeros(DIM),
            f"blocks.{i}.modulation": torch.randn(1, 6, DIM, generator=generator) / DIM**0.5,
        }
    return state


def lora(blocks: int, prefix: str, middle: str, seed: int = 1) -> dict[str, Tensor]:
    """All attention linears; `prefix` and `middle` make a dialect: DiffSynth has none and `.default`."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name in (f"{prefix}blocks.{i}.{path}" for i in range(blocks) for path in LINEARS):
        tensors[f"{name}.lora_A{middle}.weight"] = _matrix(generator, RANK, DIM)
        tensors[f"{name}.lora_B{middle}.weight"] = _matrix(generator, DIM, RANK)
    return tensors
