"""A tensor that stands for one on an Apple GPU, on any system."""

import torch


class OnDeviceWithoutFloat64(torch.Tensor):
    """A tensor on a device like Apple's, which has no float64; `cpu()` takes it off the device."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        result = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(result, cls) and result.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the framework doesn't support it."
            )
        return result
