"""Optimizers: what is missing is refused with a command, and what they remember survives a file."""

import sys

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from smra_core.training.optimizer import (
    OPTIMIZERS,
    check_optimizer,
    collect_state,
    make_optimizer,
    restore_state,
)
from smra_core.training.train_settings import TrainSettings

SHAPE = (70, 64)
"""More than 4096 values, from which on AdamW of 8 bits packs its moments."""
PACKAGES = {"adamw-8bit": "bitsandbytes", "prodigy": "prodigyopt"}
OLDEST = {"adamw-8bit": "0.50"}
"""Versions from which on a package was seen to make steps on a CPU."""


def make_parameters():
    generator = torch.Generator().manual_seed(0)
    return {
        "lora.a": nn.Parameter(torch.randn(SHAPE, generator=generator)),
        "lora.b": nn.Parameter(torch.zeros(SHAPE)),
    }


def take_steps(optimizer, parameters, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters.values():
            parameter.grad = torch.randn(SHAPE, generator=generator) + parameter.detach()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_bit_for_bit(name):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name], minversion=OLDEST.get(name))
    whole, part = make_parameters(), make_parameters()
    take_steps(make_optimizer(name, list(whole.values()), 1.0, 0.01), whole, 8)
    first = make_optimizer(name, list(part.values()), 1.0, 0.01)
    take_steps(first, part, 5)
    if name == "adamw-8bit":
        assert first.state[part["lora.a"]]["state1"].dtype == torch.uint8
    saved = load(save({key: value.clone() for key, value in collect_state(first, part).items()}))
    restored = {key: nn.Parameter(value.detach().clone()) for key, value in part.items()}
    second = make_optimizer(name, list(restored.values()), 1.0, 0.01)
    restore_state(second, restored, saved)
    take_steps(second, restored, 3, first=5)
    assert all(torch.equal(restored[key], whole[key]) for key in whole)
    assert any(not torch.equal(part[key], whole[key]) for key in whole)


def test_adamws_state_has_the_names_that_it_always_had():
    parameters = make_parameters()
    optimizer = make_optimizer("adamw", list(parameters.values()), 0.1, 0.0)
    assert collect_state(optimizer, parameters) == {}
    take_steps(optimizer, parameters, 1)
    moments = ("step", "exp_avg", "exp_avg_sq")
    assert set(collect_state(optimizer, parameters)) == {
        f"adam.lora.{factor}.{moment}" for factor in "ab" for moment in moments
    }


def test_prodigys_own_numbers_are_kept():
    pytest.importorskip("prodigyopt")
    parameters = make_parameters()
    optimizer = make_optimizer("prodigy", list(parameters.values()), 1.0, 0.0)
    take_steps(optimizer, parameters, 3)
    state, group = collect_state(optimizer, parameters), optimizer.param_groups[0]
    assert state["number.group.d"].item() == group["d"] >= group["d0"]
    assert state["number.group.k"].item() == 3 and state["number.adam.lora.a.step"].item() == 3
    assert "number.group.lr" not in state


@pytest.mark.parametrize("name, package", PACKAGES.items())
def test_a_missing_package_is_refused_with_the_command_that_installs_it(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.optim", None)
    with pytest.raises(
        ImportError, match=f"'{name}' needs the package {package}.*pip install {package}`, or"
    ):
        check_optimizer(name)
    check_optimizer("adamw")


def test_prodigy_with_a_rate_for_adamw_is_refused():
    with pytest.raises(
        ValueError, match="multiplies it by learning_rate, which is 0.0001. Set learning_rate"
    ):
        TrainSettings(optimizer="prodigy")
    TrainSettings(optimizer="prodigy", learning_rate=1.0)
