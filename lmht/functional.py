"""The paper's equations as pure functions: explicit state, multi-step, and the reference for everything faster.

Every function takes the time axis first, ``[T, ...]``, keeps dtype and device of its input, and starts from the given ``v(0)``.
float16 and bfloat16 are computed in float32 and rounded once, at the end.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lmht.surrogate import fire, once


def integrate_and_fire(
    current: Tensor,
    *,
    theta: float,
    leak: float = 1.0,
    v0: float | Tensor = 0.0,
    temporal_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """Integrate-and-fire with soft reset, IF at ``leak = 1``, else LIF (Eqs. 1-2): :func:`mht` with one level.

    Returns:
        Spikes ``s(t)`` in {0, 1} and potentials ``v(t)`` after the reset, both ``[T, ...]``.
    """
    return mht(current, levels=1, theta=theta, leak=leak, v0=v0, temporal_gradient=temporal_gradient)


def mht(
    current: Tensor,
    *,
    levels: int,
    theta: float,
    leak: float = 1.0,
    v0: float | Tensor = 0.0,
    temporal_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """Multi-hierarchical threshold neuron (Eqs. 5-6, surrogate Eq. 8).

    ``m(t) = leak * v(t-1) + I(t)``, ``s(t) = clip(floor(m(t) / theta), 0, L)``, ``v(t) = m(t) - s(t) * theta``.

    Args:
        current: input current ``I(t)``, ``[T, ...]``, in units of the potential.
        levels: number of threshold levels ``L >= 1``.
        theta: firing threshold, > 0.
        leak: leak ``lambda``, a number.
        v0: potential before the first step, a number or a tensor of the shape of one step.
        temporal_gradient: keep the chain through ``v(t-1)`` and the reset (vanilla STBP); False detaches it.

    Returns:
        Spikes ``s(t)`` in {0..L} and potentials ``v(t)`` after the reset, both ``[T, ...]``.

    Raises:
        ValueError: an argument is outside its range, a shape does not fit, or the current holds NaN.
    """
    check_arguments(current, levels=levels, theta=theta, v0=v0, leak=leak)
    x = current.to(compute_dtype(current))
    v = initial_potential(x, v0)
    spikes, potentials = [], []
    for t in range(len(x)):
        m = leak * (v if temporal_gradient else v.detach()) + x[t]
        s = fire(m, theta=theta, levels=levels)
        v = m - (s if temporal_gradient else s.detach()) * theta
        spikes.append(s)
        potentials.append(v)
    return torch.stack(spikes).to(current.dtype), torch.stack(potentials).to(current.dtype)


def lmht(
    x: Tensor,
    *,
    levels: int,
    theta: float,
    omega: Tensor,
    leak: float | Tensor,
    v0: float | Tensor = 0.0,
) -> Tensor:
    """Learnable multi-hierarchical threshold neuron (Eqs. 7-9): :func:`mht` on a current mixed over time by the T-GIM.

    ``I(t) = sum_j omega[t, j] * x(j)``. The temporal chain is detached: with ``g(t) = dLoss/dout(t) * window(m(t))``,
    ``dx(j) = sum_t omega[t, j] * g(t)``, ``domega[t, j] = sum g(t) * x(j)``, ``dleak = sum_t sum g(t) * v(t-1)``.

    Args:
        x: ``W s_prev(t) * theta_prev + b``, the layer's current before the mixing, ``[T, ...]``.
        levels: number of threshold levels ``L >= 1``.
        theta: firing threshold, > 0.
        omega: T-GIM ``Omega``, ``[T, T]``, row = step of the current, column = step of the input.
        leak: leak ``lambda``: a number, a tensor ``[]``, or one value a step ``[T, 1]`` (Theorem A.2 needs that).
        v0: potential before the first step, a number or a tensor of the shape of one step.

    Returns:
        ``s(t) * theta``, ``[T, ...]``.

    Raises:
        ValueError: an argument is outside its range, a shape does not fit, or the input holds NaN.
    """
    check_arguments(x, levels=levels, theta=theta, v0=v0, omega=omega, leak=leak)
    steps, dtype = len(x), compute_dtype(x)
    xs, omega = x.to(dtype), omega.to(dtype)
    leaks = torch.as_tensor(leak, dtype=dtype, device=x.device).expand(steps, 1)[:, 0]
    v = initial_potential(xs, v0).detach()
    outs = []
    for t in range(steps):
        m = leaks[t] * v
        for j in range(steps):  # left to right: the order of summation is part of the definition
            m = m + omega[t, j] * xs[j]
        out = fire(m, theta=theta, levels=levels, amplitude=theta)
        v = (m - out).detach()
        outs.append(out)
    return torch.stack(outs).to(x.dtype)


class _QCFS(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        level = (x * levels / scale + 0.5).floor()
        return scale / levels * level.clamp(0, levels), (level >= 0) & (level <= levels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        out, mask = output
        ctx.mark_non_differentiable(mask)
        ctx.save_for_backward(*inputs[:2], mask, out)
        ctx.save_for_forward(*inputs[:2], mask, out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, Tensor, None]:
        x, scale, mask, out = ctx.saved_tensors
        grad_x = grad * mask
        grad_scale = ((grad * out - grad_x * x).sum() / scale).reshape(scale.shape)
        return once(grad_x, x, scale), once(grad_scale, x, scale), None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, scale_tangent: Tensor | None, _: None) -> tuple[Tensor, None]:
        x, scale, mask, out = ctx.saved_tensors
        parts = [] if x_tangent is None else [x_tangent * mask]
        parts += [] if scale_tangent is None else [scale_tangent * (out - mask * x) / scale]
        return once(sum(parts[1:], parts[0]), x, scale), None


def qcfs(x: Tensor, *, levels: int, scale: float | Tensor) -> Tensor:
    """Quantization-clip-floor-shift activation of the quantised ANN (Eq. 4).

    ``a = scale/Tq * clip(floor(x * Tq / scale + 1/2), 0, Tq)``; with ``mask = [0 <= floor(...) <= Tq]``, ``da/dx = mask`` and
    ``da/dscale = (a - mask * x) / scale`` (straight-through floor, the clip's own gradient).

    Args:
        x: pre-activation, any shape.
        levels: number of quantisation levels ``Tq >= 1``.
        scale: ``vartheta`` > 0, a number or a tensor ``[]``.

    Raises:
        ValueError: an argument is outside its range or the input holds NaN.
    """
    check_floating(x)
    return _QCFS.apply(x.to(compute_dtype(x)), checked_scale(x, levels, scale), levels)[0].to(x.dtype)


def checked_scale(x: Tensor, levels: int, scale: float | Tensor, value: bool = True) -> Tensor:
    """QCFS's scale as a tensor in the dtype that is computed in, or the ValueError of :func:`qcfs`; ``value=False`` reads none."""
    check_levels(levels)
    scale = torch.as_tensor(scale, device=x.device).to(compute_dtype(x))
    if scale.numel() != 1:
        raise ValueError(f"scale must be one number, got a tensor of shape {tuple(scale.shape)}")
    if value and not symbolic(x) and not 0 < float(scale.detach()) < math.inf:
        raise ValueError(f"scale must be finite and > 0, got {float(scale.detach())}")
    return scale


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64, else float32: half types hold too few digits to integrate in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def initial_potential(x: Tensor, v0: float | Tensor) -> Tensor:
    """``v(0)`` as a tensor of the shape of one step of ``x``."""
    return torch.as_tensor(v0, dtype=x.dtype, device=x.device).expand(x.shape[1:])


def check_levels(levels: int) -> None:
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
        raise ValueError(f"levels (L) must be an integer >= 1, got {levels!r}")


def check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps (T) must be an integer >= 1, got {steps!r}")


def check_theta(theta: float) -> None:
    if not 0 < theta < math.inf:
        raise ValueError(f"theta must be finite and > 0, got {theta!r}")


def check_floating(x: Tensor, values: bool = True) -> None:
    """Raise unless ``x`` is a floating-point tensor without NaN (skipped while a compiler traces: no values there)."""
    if not x.dtype.is_floating_point:
        raise ValueError(f"input must be a floating-point tensor, got {x.dtype}; convert it with .float()")
    if values and not symbolic(x) and bool(torch.isnan(x.detach().sum())) and (nan := int(torch.isnan(x).sum())):
        raise ValueError(f"input holds {nan} NaN of {x.numel()} values; find the layer or the data it comes from")


def check_arguments(
    x: Tensor,
    *,
    levels: int,
    theta: float,
    v0: float | Tensor,
    omega: Tensor | None = None,
    leak: float | Tensor = 1.0,
    values: bool = True,
) -> None:
    """Raise ValueError, naming value and remedy, unless the arguments fit together (see :func:`lmht`).

    Looking for NaN reads the whole input once; ``values=False`` leaves that out.
    """
    check_levels(levels)
    check_theta(theta)
    if x.dim() < 1 or len(x) < 1:
        raise ValueError(f"input must be [T, ...] with T >= 1, got shape {tuple(x.shape)}")
    steps = len(x)
    if isinstance(v0, Tensor) and v0.shape not in (x.shape[1:], ()):
        raise ValueError(
            f"v0 must be a number or have the shape of one step, {tuple(x.shape[1:])}, got {tuple(v0.shape)}"
        )
    if omega is not None and omega.shape != (steps, steps):
        raise ValueError(f"omega must be [T, T] with T = {steps} steps as in the input, got {tuple(omega.shape)}")
    if omega is not None and omega.device != x.device:
        raise ValueError(f"omega is on {omega.device}, the input on {x.device}; move one of them with .to()")
    a_step = (
        "" if omega is None else f" or one value a step, [T, 1] with T = {steps}"
    )  # [T] could as well mean channels
    if isinstance(leak, Tensor) and leak.shape not in ((), (steps, 1))[: 1 if omega is None else 2]:
        raise ValueError(f"leak must be a number{a_step}, got shape {tuple(leak.shape)}; there is none a channel")
    check_floating(x, values)


def symbolic(x: Tensor) -> bool:
    """Whether a tensor has no values to look at: a compiler traces, it is a meta or fake tensor, or torch.func has wrapped it."""
    traced = torch.compiler.is_compiling() or transformed()
    return traced or x.is_meta or isinstance(x, torch._subclasses.FakeTensor)


def transformed() -> bool:
    """Whether one of torch.func's transforms (``grad``, ``vmap``, ``jvp``, ...) looks on, or forward-mode differentiation."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
