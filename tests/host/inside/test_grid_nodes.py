"""The names of a grid's cells: another video has another name, and no name leads out of the grid's folder."""

import pytest
import torch
from random_wan import pack

FRAMES = torch.rand(2, 16, 16, 3)


@pytest.fixture
def loras(loras_folder, tmp_path, monkeypatch):
    """The folder of LoRA files, with a file for both experts and one for each; and an output folder."""
    import folder_paths

    for name in ("cat", "dog_high_noise", "dog_low_noise"):
        (loras_folder / f"{name}.safetensors").write_text(name)
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return loras_folder


def make_key(subject, is_pair):
    expansion, cells = pack("nodes.grid.expansion"), pack("smra_core.evaluation.grid_cells")
    cell = cells.CellValues(cells.GridLora(subject), cells.GridLora("None"), 1.0, 1.0, None, 1)
    models = {"model_low_noise": object()} if is_pair else {}
    return expansion.make_key(expansion.GridInputs(models, None, "shared"), cell, "a dog")


def test_a_cell_of_a_pair_has_the_files_of_both_experts_in_its_name(loras):
    name = "dog_high_noise.safetensors"
    pair, alone = make_key(name, True), make_key(name, False)
    (loras / "dog_low_noise.safetensors").write_text("trained longer")
    assert make_key(name, True) != pair and make_key(name, False) == alone
    (loras / name).write_text("trained longer")
    assert make_key(name, False) != alone


def test_a_replaced_file_and_a_removed_video_are_sampled_again(loras):
    node = pack("nodes").NODE_CLASS_MAPPINGS["SMRACompareGrid"]
    save = pack("nodes").NODE_CLASS_MAPPINGS["SMRASaveGridCell"]

    def read_state():
        lists = {"subject_loras": "dog_high_noise.safetensors | a dog", "motion_loras": "None"}
        return node.fingerprint_inputs(name="grid", steps=4, **lists)

    states = [read_state()]
    save.execute(FRAMES, "grid", "a: b", 8.0)
    states.append(read_state())
    (loras / "dog_low_noise.safetensors").write_text("trained longer")
    states.append(read_state())
    (loras / "cat.safetensors").write_text("in no list")
    assert read_state() == states[-1] and len(set(states)) == 3
    assert node.fingerprint_inputs() == node.fingerprint_inputs(name=None, subject_loras=None)


def test_another_picture_through_clip_vision_is_another_conditioning():
    from comfy.clip_vision import Output

    describe = pack("nodes.grid.expansion").describe_content

    def make(value):
        output = Output()
        output["image_embeds"], output["itself"] = torch.full((1, 4), value), output
        return [[torch.zeros(1, 2), {"clip_vision_output": output}]]

    assert describe(make(1.0)) == describe(make(1.0)) != describe(make(2.0))


@pytest.mark.parametrize("key", ["../../escaped", "/tmp/escaped", "..\\escaped"])
def test_the_key_of_a_cell_leads_to_no_other_folder(loras, tmp_path, key):
    save = pack("nodes").NODE_CLASS_MAPPINGS["SMRASaveGridCell"]
    (grid,) = save.execute(FRAMES, "grid", "a: b", 8.0, key=key).args
    cells = tmp_path / "output" / "smra" / "grids" / "grid" / "cells"
    assert {file.suffix for file in cells.iterdir()} == {".mp4", ".json"}
    assert not any(part in grid.keys[0] for part in "./\\")
