"""Tests that import ComfyUI: collected only by its own interpreter, which the outer tests start."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

HOST = os.environ.get("SMRA_TEST_HOST")
PACK = Path(__file__).parents[3]
collect_ignore_glob = [] if HOST else ["test_*.py"]

if HOST:
    sys.path.insert(0, HOST)
    from comfy.cli_args import args

    # Before anything of the host is imported, as it looks for a GPU at once.
    args.cpu = True
    args.base_directory = os.environ["SMRA_TEST_BASE"]
    args.disable_dynamic_vram = True
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pack():
    """The pack, imported as the host imports it."""
    if "smra_pack" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "smra_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules["smra_pack"] = module
        spec.loader.exec_module(module)
    return importlib.import_module
