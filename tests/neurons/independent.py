"""A right implementation that shares nothing with the library: NumPy, thresholds counted one by one, gradients by hand."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.float64]]


def _numpy(x: float | Tensor) -> Array:
    return x.detach().cpu().to(torch.float64).numpy() if isinstance(x, Tensor) else np.array(x, dtype=np.float64)


def _simulate(currents: Array, levels: int, theta: float, leak: float, v0: Array) -> tuple[Array, Array, Array]:
    """Potentials before firing, spikes and potentials after the reset."""
    v = np.broadcast_to(v0, currents.shape[1:])
    ms, counts, vs = np.empty_like(currents), np.empty_like(currents), np.empty_like(currents)
    thresholds = theta * np.arange(1, levels + 1)
    for t, current in enumerate(currents):
        ms[t] = current + leak * v
        counts[t] = (ms[t][..., None] >= thresholds).sum(-1)
        v = vs[t] = ms[t] - theta * counts[t]
    return ms, counts, vs


class _ByHand(torch.autograd.Function):
    """Forward value and a function from dLoss/dout to the gradients of all tensors."""

    @staticmethod
    def forward(
        ctx: Any, forward: Callable[..., tuple[Array, Callable[..., tuple[Array, ...]]]], *tensors: Tensor
    ) -> Tensor:
        value, ctx.gradients = forward(*(_numpy(tensor) for tensor in tensors))
        ctx.like = tensors
        return torch.as_tensor(value).to(tensors[0])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.gradients(_numpy(upstream))
        return (
            None,
            *(torch.as_tensor(g).to(like).reshape(like.shape) for g, like in zip(found, ctx.like, strict=True)),
        )


class Independent:
    name = "independent, NumPy"

    def mht(
        self, current: Tensor, *, levels: int, theta: float, leak: float = 1.0, v0: float | Tensor = 0.0
    ) -> tuple[Tensor, Tensor]:
        _, counts, v = _simulate(_numpy(current), levels, theta, leak, _numpy(v0))
        return torch.as_tensor(counts).to(current), torch.as_tensor(v).to(current)

    def integrate_and_fire(
        self, current: Tensor, *, theta: float, leak: float = 1.0, v0: float | Tensor = 0.0
    ) -> tuple[Tensor, Tensor]:
        return self.mht(current, levels=1, theta=theta, leak=leak, v0=v0)

    def lmht(
        self, x: Tensor, *, levels: int, theta: float, omega: Tensor, leak: Tensor, v0: float | Tensor = 0.0
    ) -> Tensor:
        start = np.broadcast_to(_numpy(v0), x.shape[1:])

        def forward(inputs: Array, weights: Array, decay: Array) -> tuple[Array, Callable[..., tuple[Array, ...]]]:
            m, counts, v = _simulate(np.tensordot(weights, inputs, 1), levels, theta, float(decay), start)
            before = np.concatenate([start[None], v[:-1]])

            def gradients(upstream: Array) -> tuple[Array, ...]:
                g = np.where((2 * m < theta) | (2 * m > (2 * levels + 1) * theta), 0.0, upstream)
                flat_g, flat_x = g.reshape(len(g), -1), inputs.reshape(len(inputs), -1)
                return np.tensordot(weights.T, g, 1), flat_g @ flat_x.T, (g * before).sum()

            return counts * theta, gradients

        return _ByHand.apply(forward, x, omega, leak)

    def qcfs(self, x: Tensor, *, levels: int, scale: Tensor) -> Tensor:
        def forward(inputs: Array, size: Array) -> tuple[Array, Callable[..., tuple[Array, ...]]]:
            edges = np.arange(1, levels + 1) - 0.5  # level k starts at (k - 1/2) * scale / levels
            position = inputs * levels / size
            out = size / levels * (position[..., None] >= edges).sum(-1)
            inside = (position >= -0.5) & (position < levels + 0.5)

            def gradients(upstream: Array) -> tuple[Array, ...]:
                return upstream * inside, (upstream * (out - inside * inputs)).sum() / size

            return out, gradients

        return _ByHand.apply(forward, x, scale)


independent = Independent()
only_mht = SimpleNamespace(name="M-HT and nothing else", mht=independent.mht)
