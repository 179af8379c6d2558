"""Neurons as people bring them: some follow another convention, some can't be asked at all."""

from typing import Any

import torch
from torch import Tensor

from tests.neurons.broken import HardReset, Neuron, RoundForFloor, SpikesNotScaled, _Right


class NeverReset(Neuron):
    """Keeps its potential from call to call, whatever v0 says, until the shape changes."""

    v: Tensor | None = None

    def start(self, x: Tensor, v0: float | Tensor) -> Tensor:
        return self.v if self.v is not None and self.v.shape == x.shape[1:] else super().start(x, v0)

    def reset(self, m: Tensor, s: Tensor, theta: float) -> Tensor:
        self.v = super().reset(m, s, theta).detach()
        return super().reset(m, s, theta)


class AlwaysRaises:
    name = "always raises"

    def mht(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("later")

    integrate_and_fire = lmht = qcfs = mht


class ClampedQCFS(Neuron):
    """``torch.clamp`` as it is from 2.14 on, whatever the version: no gradient at the clip's bounds."""

    def passes(self, level: Tensor, levels: int) -> Tensor:
        return (level > 0) & (level < levels)


class Floor(torch.autograd.Function):
    """floor, with the straight-through estimator's gradient 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.floor()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class TorchClamp(Neuron):
    """QCFS as it is usually published: the gradient at levels 0 and Tq is whatever this torch's clamp has at a bound."""

    def qcfs(self, x: Tensor, *, levels: int, scale: float | Tensor) -> Tensor:
        return torch.clamp(Floor.apply(x * levels / scale + 0.5), 0, levels) * scale / levels


class SigmoidSurrogate(Neuron):
    def surrogate(self, s: Tensor, m: Tensor, theta: float, levels: int) -> Tensor:
        slope = torch.stack([torch.sigmoid(4 * (m / theta - k)) for k in range(1, levels + 1)]).sum(0) * theta
        return s * theta + (slope - slope.detach())


class LeakUpToOne(Neuron):
    """At 1 it is still learnt; torch.clamp's gradient there is 0 from torch 2.14 on."""

    def potential(self, v: Tensor, current: Tensor, leak: float | Tensor) -> Tensor:
        leak = torch.as_tensor(leak, dtype=v.dtype)
        return torch.where(leak > 1, torch.ones_like(leak), leak) * v + current


class Inference(Neuron):
    def lmht(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().lmht(*args, **kwargs).detach()


class Tires(Neuron):
    """Right for its first two hundred calls."""

    calls = 0

    def start(self, x: Tensor, v0: float | Tensor) -> Tensor:
        self.calls += 1
        return super().start(x, v0) + (self.calls > 200)


class WrongShape(Neuron):
    def narrow(self, value: Tensor, x: Tensor) -> Tensor:
        return super().narrow(value, x).sum(0)


class NoLevels:
    """A missing argument."""

    def mht(self, current: Tensor, *, theta: float) -> tuple[Tensor, Tensor]:
        return current, current


class TwoLevels:
    """At most two spikes, whatever L; QCFS by clamp; no LM-HT."""

    integrate_and_fire = staticmethod(_Right().integrate_and_fire)
    qcfs = staticmethod(ClampedQCFS().qcfs)

    def mht(self, current: Tensor, *, levels: int, **arguments: Any) -> tuple[Tensor, Tensor]:
        return _Right().mht(current, levels=min(levels, 2), **arguments)


class NeedsAnObject(_Right):
    """Passed as it is: a class."""


never_reset, always_raises, hard_reset, rounds = NeverReset(), AlwaysRaises(), HardReset(), RoundForFloor()
clamped, sigmoid, wrong_shape, no_levels = ClampedQCFS(), SigmoidSurrogate(), WrongShape(), NoLevels()
inference, tires, two_levels, leak_up_to_one = Inference(), Tires(), TwoLevels(), LeakUpToOne()
torch_clamp, counts = TorchClamp(), SpikesNotScaled()
