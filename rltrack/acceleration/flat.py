"""Many parameters in one tensor, so that one operation serves all.

Each parameter becomes a view that begins at a multiple of 64 bytes: MKL's results depend on the address of its operands. The
padding between them is zero and stays zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ALIGNED = 16  # floats


class FlatLayout:
    """Where each parameter lies in a flat tensor.

    Args:
        parameters: Contiguous float32 tensors on the CPU.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self.shapes = [parameter.shape for parameter in parameters]
        self.sizes = [parameter.numel() for parameter in parameters]
        self.starts: list[int] = []
        self.length = 0
        for size in self.sizes:
            self.starts.append(self.length)
            self.length += -(-size // _ALIGNED) * _ALIGNED

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Return the views of the parameters' places in a flat tensor."""
        places = zip(self.starts, self.sizes, self.shapes, strict=True)
        return [flat[start : start + size].view(shape) for start, size, shape in places]

    def tensor(self, value: float = 0.0) -> torch.Tensor:
        """Return a new flat tensor, of a value everywhere but in the padding."""
        flat = torch.zeros(self.length)
        if value:
            for view in self.views(flat):
                view.fill_(value)
        return flat


class FlatParameters:
    """Parameters whose data are views of one tensor, ``values``.

    Args:
        parameters: What an optimizer or a target network holds.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self.parameters = list(parameters)
        self.layout = FlatLayout(self.parameters)
        self.values = torch.empty(0)
        self._addresses: list[int] = []

    def bind(self) -> None:
        """Make the parameters views, where they are not (any more)."""
        if [parameter.data_ptr() for parameter in self.parameters] == self._addresses:
            return
        self.values = self.layout.tensor()
        views = self.layout.views(self.values)
        for parameter, view in zip(self.parameters, views, strict=True):
            view.copy_(parameter.data)
            parameter.data = view
        self._addresses = [parameter.data_ptr() for parameter in self.parameters]

    def release(self) -> None:
        """Give each parameter memory of its own again."""
        if self._addresses:
            for parameter in self.parameters:
                parameter.data = parameter.data.clone()
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.clone()
            self._addresses = []


def can_be_flat(parameters: Sequence[torch.Tensor]) -> bool:
    """Return whether these parameters can lie in one tensor."""
    return len({id(parameter) for parameter in parameters}) == len(parameters) and all(
        parameter.dtype is torch.float32
        and parameter.device.type == "cpu"
        and parameter.layout is torch.strided
        and parameter.is_contiguous()
        and parameter.numel() > 0
        for parameter in parameters
    )
