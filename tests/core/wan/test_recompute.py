import pytest
import torch
from torch import Tensor

from smra_core.wan.recompute import run_checkpointed


def cube(x: Tensor, fail: str = "") -> Tensor:
    y = x * x
    if fail == "always":
        raise ValueError("broken")
    return y * x


def test_the_gradient_is_that_of_the_function():
    x = torch.tensor([2.0, -1.0], requires_grad=True)
    y = run_checkpointed(cube, x)
    y.sum().backward()
    assert y.tolist() == [8, -1] and x.grad.tolist() == [12, 3]


def test_only_the_inputs_are_kept_and_the_function_runs_again_in_backward():
    runs = []

    def counted(x):
        runs.append(1)
        return cube(x)

    x = torch.ones(2, requires_grad=True)
    y = run_checkpointed(counted, x)
    assert len(runs) == 1
    y.sum().backward()
    assert len(runs) == 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("deep", [False, True])
def test_an_error_leaves_no_hooks_though_its_traceback_is_kept(error, deep):
    def fail(x):
        y = x * x
        raise error("broken")
        return y

    def nested(x):
        return run_checkpointed(fail, x * 2)

    x = torch.ones(2, requires_grad=True)
    with pytest.raises(error, match="broken") as kept:  # with the frames of the failed call
        run_checkpointed(nested if deep else fail, x)
    assert "fail" in [entry.name for entry in kept.traceback]
    saved = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    x = torch.tensor([3.0], requires_grad=True)
    assert (x * x).grad_fn._saved_self.data_ptr() == x.data_ptr()  # torch's own hooks would keep a holder
    with saved:
        run_checkpointed(cube, x).sum().backward()
    assert x.grad.tolist() == [27]


def test_an_error_while_recomputing_leaves_no_hooks():
    runs = []

    def fail_later(x):
        runs.append(1)
        if len(runs) > 1:
            raise ValueError("broken later")
        return cube(x)

    x = torch.ones(2, requires_grad=True)
    y = run_checkpointed(fail_later, x)
    with pytest.raises(ValueError, match="broken later") as kept:
        y.sum().backward()
    x = torch.tensor([3.0], requires_grad=True)
    run_checkpointed(cube, x).sum().backward()
    assert x.grad.tolist() == [27] and kept
