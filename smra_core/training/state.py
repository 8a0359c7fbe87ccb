"""State of a training run as named tensors: LoRA, projector, optimizer state."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..lora.adapter import Lora

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""Tensors that AdamW keeps of each parameter."""


class TrainState:
    """Trained parameters by name, their optimizer, and the number of finished steps."""

    def __init__(
        self,
        lora: Lora,
        trainables: Mapping[str, nn.Parameter],
        learning_rate: float,
        weight_decay: float,
    ):
        self.parameters: dict[str, nn.Parameter] = {
            f"lora.{name}.{factor}": getattr(pair, factor) for name, pair in lora.items() for factor in "ab"
        } | {f"objective.{name}": parameter for name, parameter in trainables.items()}
        parameters = list(self.parameters.values())
        self._is_fused = _choose_fused(parameters[0].device)
        self.optimizer = torch.optim.AdamW(
            parameters, lr=learning_rate, weight_decay=weight_decay, fused=self._is_fused
        )
        self.step = 0

    def copy_tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of all that is needed to resume bit for bit."""
        tensors = {name: parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"adam.{name}.{moment}": moments[moment] for moment in MOMENTS if moment in moments}
        return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()} | {
            "step": torch.tensor(self.step)
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors of `copy_tensors` into this state; ValueError if names or shapes do not fit."""
        self._check(tensors)
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])
            names = {moment: f"adam.{name}.{moment}" for moment in MOMENTS}
            if names["step"] in tensors:
                # AdamW keeps its moments where the parameter is, and its step counts there if it is fused,
                # else on the CPU.
                count = tensors[names["step"]].clone()
                self.optimizer.state[parameter] = {
                    moment: tensors[key].to(parameter) for moment, key in names.items()
                } | {"step": count.to(parameter.device) if self._is_fused else count}
        self.step = int(tensors["step"])

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            saved_shape = tuple(tensors[name].shape) if name in tensors else "nothing"
            if saved_shape != tuple(parameter.shape):
                raise ValueError(
                    f"The saved state has {saved_shape} for {name}, this run needs {tuple(parameter.shape)}. "
                    "It belongs to another run; give this one another name or folder."
                )


def _choose_fused(device: torch.device) -> bool:
    """Whether AdamW updates all parameters in one kernel: on CUDA, where 300 small ones cost milliseconds."""
    return device.type == "cuda"
