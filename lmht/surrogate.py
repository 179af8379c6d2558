"""Firing and its surrogate gradient (Eqs. 1, 3, 5 and 8)."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, *at: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Tensor:
        raise RuntimeError("a surrogate gradient is once_differentiable: it has no derivative of its own")

    jvp = backward


def once(grad: Tensor, *at: Tensor) -> Tensor:
    """A surrogate gradient and the tensors that it is taken at; whoever differentiates it by them is refused, torch.func too."""
    return _Once.apply(grad, *at)


def once_differentiable(backward: Callable[[Any, Tensor], tuple[Tensor | None, ...]]) -> Any:
    """Of a Function: its ``backward``, refused to whoever differentiates that by what it saved.

    After torch's decorator of this name ``torch.autograd.grad`` leaves a second derivative out without a word: no path leads from
    the gradient to the tensors that are asked for.
    """

    @functools.wraps(backward)
    def refusing(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            gradients = backward(ctx, grad)
        if not torch.is_grad_enabled():
            return gradients
        return tuple(None if one is None else once(one, grad, *ctx.saved_tensors) for one in gradients)

    return refusing


class _Fire(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(m: Tensor, theta: float, levels: int, amplitude: float) -> Tensor:
        # theta as a tensor: CUDA divides by a Python number as a product with its reciprocal, which misses ties
        return (m / m.new_full((), theta)).floor().clamp(0, levels) * amplitude

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, int, float], output: Tensor) -> None:
        m, ctx.theta, ctx.levels, amplitude = inputs
        ctx.slope = amplitude / ctx.theta
        ctx.save_for_backward(m)
        ctx.save_for_forward(m)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Fire.jvp(ctx, grad), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (m,) = ctx.saved_tensors
        return once(tangent * surrogate_window(m, theta=ctx.theta, levels=ctx.levels) * ctx.slope, m)


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
