"""The Sparse LoRA Loader on a GGUF file, as city96's ComfyUI-GGUF loads it.

Needs that pack in the host's custom_nodes (or at $COMFYUI_GGUF_PATH) and its `gguf` module; skipped without.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import random_wan
import torch
from random_wan import difference, leftovers, reference, sample
from smrabooth_pack.nodes.patching.apply_loras import apply_loras
from smrabooth_pack.smra_core.lora.adapter import LoraPair
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule

LATE_BELOW = 0.75


@pytest.fixture(scope="module")
def loader():
    """The pack's loader node."""
    pytest.importorskip("gguf")
    beside = Path(os.environ["COMFYUI_PATH"]) / "custom_nodes" / "ComfyUI-GGUF"
    folder = Path(os.environ.get("COMFYUI_GGUF_PATH", beside))
    if not (folder / "nodes.py").is_file():
        pytest.skip("ComfyUI-GGUF is not there: set COMFYUI_GGUF_PATH to a checkout of it.")
    spec = importlib.util.spec_from_file_location(
        "gguf_pack", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules["gguf_pack"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]()


def write(state: dict, path: Path) -> dict:
    """A file whose blocks' linears are Q8_0; the values that it stands for."""
    import gguf

    writer = gguf.GGUFWriter(path, "wan")
    linears, stands_for = {f"{name}.weight" for name in random_wan.block_linears()}, {}
    for name, tensor in state.items():
        values = tensor.float().numpy()
        if name in linears:
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            values = gguf.quants.dequantize(packed, kind)
        elif values.ndim > 4:  # the format holds four dimensions; the loader wants the rest told
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(values.shape))
            writer.add_tensor(name, values.reshape(len(values), -1))
        else:
            writer.add_tensor(name, values)
        stands_for[name] = torch.from_numpy(values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stands_for


def test_a_switched_run_on_a_gguf_file(loader, state, loras, tmp_path, monkeypatch):
    import folder_paths

    stands_for = write(state, tmp_path / "tiny.gguf")
    monkeypatch.setattr(folder_paths, "get_full_path", lambda folder, name: str(tmp_path / name))
    with torch.inference_mode():
        (packed,) = loader.load_unet("tiny.gguf")
    packed, plain = random_wan.with_shift(packed, random_wan.SHIFT), random_wan.load(stands_for)
    base = sample(packed)
    floor = difference(base, sample(plain))
    both = [
        ScheduledLora({name: LoraPair(a, b) for name, (a, b) in factors.items()}, strengths)
        for factors, strengths in zip(loras, (Strengths(0.4, 0.8), Strengths.from_value(1.0)), strict=True)
    ]
    result = apply_loras(packed, both, StrengthSchedule(0.7))
    assert result.merged == (0.0, 0.0)  # a merge would be rounded to 8 bits again
    ours = sample(result.model)
    exact = sample(reference(plain, [(loras[0], 0.4, 0.8), (loras[1], 1.0, 1.0)], LATE_BELOW))
    assert difference(ours, exact) < 3 * floor + 1e-3
    assert difference(ours, base) > 100 * difference(ours, exact)
    assert leftovers(packed) == []
    assert torch.equal(sample(packed), base)
