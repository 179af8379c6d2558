"""Firing and its surrogate gradient (Eqs. 1, 3, 5 and 8)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, theta: float, levels: int, amplitude: float) -> Tensor:
        ctx.save_for_backward(m)
        ctx.theta, ctx.levels, ctx.slope = theta, levels, amplitude / theta
        # theta as a tensor: CUDA divides by a Python number as a product with its reciprocal, which misses ties
        return (m / m.new_full((), theta)).floor().clamp(0, levels) * amplitude

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (m,) = ctx.saved_tensors
        return grad * surrogate_window(m, theta=ctx.theta, levels=ctx.levels) * ctx.slope, None, None, None


def fire(m: Tensor, *, theta: float, levels: int, amplitude: float = 1.0) -> Tensor:
    """``amplitude * clip(floor(m / theta), 0, L)``: the spikes of one step (Eq. 5), times a constant.

    With ``amplitude = 1`` the result is the spike count ``s(t)``, with ``amplitude = theta`` it is what a layer passes on,
    ``s(t) * theta``. The surrogate derivative of ``s(t) * theta`` with respect to ``m(t)`` is 1 inside the window of
    :func:`surrogate_window` and 0 outside, so that of ``s(t)`` is ``1 / theta``.

    Args:
        m: membrane potential before firing, any shape; a tie ``m = k * theta`` fires ``k`` spikes.
        theta: firing threshold, > 0.
        levels: number of threshold levels L.
        amplitude: value of one spike.
    """
    return _Fire.apply(m, theta, levels, amplitude)


def surrogate_window(m: Tensor, *, theta: float, levels: int) -> Tensor:
    """Boolean mask ``theta/2 <= m <= (L + 1/2) * theta`` (Eq. 8; at L = 1 the rectangle ``|m - theta| <= theta/2``, Eq. 3)."""
    return (m >= theta / 2) & (m <= (levels + 0.5) * theta)
