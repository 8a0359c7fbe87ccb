"""Choice of the device and the precision that a job runs with."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(text: str = "auto") -> torch.device:
    """Return the device of that name, for `auto` a GPU if there is one; ValueError when it cannot be used."""
    if text == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Device {text!r} cannot be used ({error}). Give auto, cpu, or a device of this computer such as "
            "cuda or cuda:1."
        ) from error
    return device


def choose_dtype(text: str, device: torch.device) -> torch.dtype:
    """Return the precision of the frozen model.

    `auto` is bfloat16 on a GPU that supports it, else float32: float16 cannot be trained in (see
    training.job.check_precision).
    """
    if text != "auto":
        return DTYPES[text]
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32
