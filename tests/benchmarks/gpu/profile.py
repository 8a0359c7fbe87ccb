"""Where the time of a step goes: the kernels and the calls of one recorded step."""

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.gpu.meter import run_case
from tests.benchmarks.gpu.training_steps import list_motion_cases, list_subject_cases

STEPS, LINES = 3, 22
WANTED = {
    "motion": ("plain LoRA step", "windowed", "exact, recomputing"),
    "subject": ("with SuRA",),
}


def profile_steps(sizes, device: torch.device) -> str:
    """Return a table of kernels and calls for each wanted case, sorted by the time on the device."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    tables = []
    for part, make in (("motion", list_motion_cases), ("subject", list_subject_cases)):
        for case in WANTED[part]:
            recorded = profile(activities=activities)
            row, work = next(each for each in make(sizes, device, STEPS, recorded) if each[0].case == case)
            run_case(row, device, work)
            tables.append(f"{row.part}, {case}\n{_render(recorded, device)}")
    return "\n\n".join(tables)


def _render(recorded: profile, device: torch.device) -> str:
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=key, row_limit=LINES, max_name_column_width=70)
