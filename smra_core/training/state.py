"""State of a training run as named tensors: LoRA and its average, projector, optimizer state."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..lora.adapter import Lora
from .moving_average import LoraAverage
from .optimizer import ADAMW, collect_state, make_optimizer, restore_state

_AVERAGE = "ema."
"""Beginning of the names of the average's tensors."""


class TrainState:
    """Trained parameters by name, their optimizer, and the number of finished steps."""

    def __init__(
        self,
        lora: Lora,
        trainables: Mapping[str, nn.Parameter],
        learning_rate: float,
        weight_decay: float,
        optimizer: str = ADAMW,
        ema_decay: float = 0.0,
    ):
        """Prepare the state of step 0; `ema_decay` is that of the LoRA's moving average, 0 for none.

        Raises ImportError when the package of the optimizer is missing.
        """
        self.lora, self.learning_rate = lora, learning_rate
        self.parameters: dict[str, nn.Parameter] = {
            f"lora.{name}.{factor}": getattr(pair, factor) for name, pair in lora.items() for factor in "ab"
        } | {f"objective.{name}": parameter for name, parameter in trainables.items()}
        self.optimizer = make_optimizer(
            optimizer, list(self.parameters.values()), learning_rate, weight_decay
        )
        weights = {name: each for name, each in self.parameters.items() if name.startswith("lora.")}
        self.average = LoraAverage(weights, ema_decay) if ema_decay else None
        self.step = 0

    def update(self, rate_factor: float = 1.0) -> None:
        """Make one step of the optimizer at a share of the learning rate, and take it into the average."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate_factor
        self.optimizer.step()
        if self.average is not None:
            self.average.update()

    def publish(self) -> Lora:
        """Return the LoRA that is written to a file: the average where there is one."""
        if self.average is None or not self.step:
            return self.lora
        return self.average.average_lora(self.lora, self.step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the LoRA the values that `publish` returns for the duration of a with block."""
        if self.average is None or not self.step:
            yield
            return
        trained = {name: weight.detach().clone() for name, weight in self.average.parameters.items()}
        try:
            self._set(self.average.average(self.step))
            yield
        finally:
            self._set(trained)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def copy_tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of all that is needed to resume bit for bit."""
        tensors = {name: parameter.detach() for name, parameter in self.parameters.items()}
        tensors |= collect_state(self.optimizer, self.parameters)
        if self.average is not None:
            tensors |= {_AVERAGE + name: total for name, total in self.average.sums.items()}
        return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()} | {
            "step": torch.tensor(self.step)
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors of `copy_tensors` into this state; ValueError if names or shapes do not fit."""
        self._check(tensors)
        self._set({name: tensors[name] for name in self.parameters})
        restore_state(self.optimizer, self.parameters, tensors)
        if self.average is not None:
            for name, total in self.average.sums.items():
                total.copy_(tensors[_AVERAGE + name])
        self.step = int(tensors["step"])

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            saved_shape = tuple(tensors[name].shape) if name in tensors else "nothing"
            if saved_shape != tuple(parameter.shape):
                raise ValueError(
                    f"The saved state has {saved_shape} for {name}, this run needs {tuple(parameter.shape)}. "
                    "It belongs to another run; give this one another name or folder."
                )
