"""SMRA Optimizer Options through the training nodes."""

import sys

import pytest
from random_wan import pack
from safetensors.torch import load_file
from training_graph import train_subject


def list_loras():
    import folder_paths

    folder_paths.filename_list_cache.clear()
    return set(folder_paths.get_filename_list("loras"))


def read(file):
    import folder_paths

    return load_file(folder_paths.get_full_path_or_raise("loras", file))


def test_loras_that_are_kept_on_the_way_are_listed_even_if_the_run_is_canceled(nodes, graph, monkeypatch):
    progress = pack("nodes.training.progress").GraphProgress
    original = progress.__call__

    def cancel(self, info):
        original(self, info)
        if info.step == 3:
            raise KeyboardInterrupt

    before = list_loras()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(progress, "__call__", cancel)
        train_subject(nodes, graph, steps=4, keep_every=2, name="kept")
    (second,) = list_loras() - before
    assert second.startswith("kept_2_")
    *_, file = train_subject(nodes, graph, steps=4, keep_every=2, name="kept")
    assert list_loras() - before == {second, file} and file.startswith("kept_4_")
    short = train_subject(nodes, graph, steps=2, name="short")[3]
    first, other = read(second), read(short)
    assert all((first[name] == other[name]).all() for name in other)


def test_an_average_is_what_is_published(nodes, graph):
    plain = read(train_subject(nodes, graph, name="plain")[3])
    averaged = read(train_subject(nodes, graph, name="averaged", ema_decay=0.9)[3])
    ups = [name for name in plain if "lora_B" in name]
    assert all(averaged[name].norm() < plain[name].norm() for name in ups)  # B grows from zero


@pytest.mark.parametrize("name, package", [("prodigy", "prodigyopt"), ("adamw-8bit", "bitsandbytes")])
def test_an_optimizer_whose_package_is_missing_is_refused(nodes, graph, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.optim", None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        train_subject(nodes, graph, optimizer=name, learning_rate=1.0)


def test_a_held_out_picture_and_base_preservation_are_logged(nodes, graph):
    _, loss_map, *_ = train_subject(nodes, graph, name="all", held_out_every=2, preserve_weight=0.5)
    assert set(loss_map) == {"loss", "region", "sura", "preserve"}
    assert all(len(values) == 3 for values in loss_map.values())
