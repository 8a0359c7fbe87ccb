"""Half precision on a CPU: a gain where it has instructions for bfloat16, else fifty times slower."""

import torch


def bfloat16_where_fast() -> torch.autocast:
    """Autocast to bfloat16 on CPUs that multiply it in hardware (AVX512-BF16, AMX); elsewhere float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16())


def multiplies_bfloat16() -> bool:
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(supported())
