"""Which device and precision a job runs on."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(text: str = "auto") -> torch.device:
    """`auto` is the GPU where there is one; ValueError for a device that is not there."""
    if text == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Device {text!r} cannot be used ({error}). Give cpu, or one that is there."
        ) from error
    return device


def choose_dtype(text: str, device: torch.device) -> torch.dtype:
    """Precision of the frozen model: `auto` is bfloat16 where the GPU has it, float32 on a CPU."""
    if text != "auto":
        return DTYPES[text]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32
