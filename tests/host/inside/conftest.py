"""Runs inside the host's own interpreter, started by tests/host/test_inside_the_host.py."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).parents[3]
sys.path.insert(0, os.environ["COMFYUI_PATH"])
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import comfy.cli_args  # noqa: E402

# Before anything else of the host is imported: it looks for a graphics card as soon as it is.
comfy.cli_args.args.cpu = True
# One kernel, which a compiler sees through; the host's own choice on a CPU splits a graph in many.
comfy.cli_args.args.use_pytorch_cross_attention = True


def load_pack():
    """The pack as the host imports it: a package named after its folder, without being installed."""
    name = "smrabooth_pack"
    spec = importlib.util.spec_from_file_location(
        name, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


load_pack()


@pytest.fixture(scope="session")
def state():
    import random_wan

    return random_wan.dit_state()


@pytest.fixture(scope="session")
def model(state):
    import random_wan

    return random_wan.load(state)


@pytest.fixture
def loras():
    """Random factors of a subject and a motion LoRA."""
    import random_wan

    return (
        random_wan.lora_tensors(random_wan.SUBJECT_LAYERS, seed=1),
        random_wan.lora_tensors(random_wan.MOTION_LAYERS, seed=2),
    )


@pytest.fixture(scope="session")
def graph(tmp_path_factory):
    import training_graph

    return training_graph.Graph(tmp_path_factory.mktemp("models"))


@pytest.fixture
def nodes(tmp_path):
    """The pack's nodes, with outputs in a folder of the test's own."""
    import folder_paths
    from random_wan import pack

    before = folder_paths.get_output_directory(), folder_paths.get_temp_directory()
    folder_paths.set_output_directory(str(tmp_path))
    folder_paths.set_temp_directory(str(tmp_path / "temp"))
    yield pack("nodes").NODE_CLASS_MAPPINGS
    folder_paths.set_output_directory(before[0])
    folder_paths.set_temp_directory(before[1])


@pytest.fixture
def loras_folder(tmp_path):
    """A folder that the host looks for LoRAs in, during the test."""
    import folder_paths

    folder = tmp_path / "loras"
    folder.mkdir()
    paths = folder_paths.folder_names_and_paths["loras"][0]
    paths.append(str(folder))
    folder_paths.filename_list_cache.clear()
    yield folder
    paths.remove(str(folder))
    folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="module")
def load_variant():
    """Function that returns the MODEL of a variant of WAN and its state dict; each is made once."""
    import comfy.model_base
    import random_variants

    made = {}

    def load(name):
        if name not in made:
            variant = random_variants.BY_NAME[name]
            if not hasattr(comfy.model_base, variant.kind):
                pytest.skip(f"This version of ComfyUI does not know {name}.")
            state = random_variants.make_state(variant)
            made[name] = random_variants.load(variant, state), state
        return made[name]

    return load
