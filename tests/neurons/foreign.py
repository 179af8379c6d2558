"""Neurons as people bring them: some follow another convention, some can't be asked at all."""

from typing import Any

import torch
from torch import Tensor

from tests.neurons.broken import (
    FrozenWhereItsInputIs,
    HardReset,
    Neuron,
    RoundForFloor,
    SpikesNotScaled,
    _Passing,
    _Right,
)


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
        k = torch.arange(1, levels + 1, dtype=m.dtype)
        slope = torch.sigmoid(4 * ((m / theta)[..., None] - k)).sum(-1) * theta
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


class Exits(_Right):
    def mht(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise SystemExit("needs a GPU")


class Tired(HardReset):
    """A hard reset, and no spike from step 9 on."""

    def mht(self, current: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
        spikes, v = super().mht(current, **arguments)
        return torch.cat([spikes[:8], 0 * spikes[8:]]), v


class FrozenSigmoid(FrozenWhereItsInputIs, SigmoidSurrogate):
    """Another surrogate, and no gradient in a network's first layer."""


class Downhill(Neuron):
    """Eq. 8's window with the other sign: no surrogate of a staircase that rises."""

    def surrogate(self, s: Tensor, m: Tensor, theta: float, levels: int) -> Tensor:
        return 2 * s * theta - super().surrogate(s, m, theta, levels)


class NaNAtThreeQuarters(Neuron):
    def mht(self, current: Tensor, *, theta: float, **arguments: Any) -> tuple[Tensor, Tensor]:
        spikes, v = super().mht(current, theta=theta, **arguments)
        return (spikes * float("nan"), v) if theta == 0.75 else (spikes, v)


class NoBackward(Neuron):
    def lmht(self, x: Tensor, **arguments: Any) -> Tensor:
        return _Passing.apply(super().lmht(x, **arguments), lambda grad: [][grad.dim()])


class Ceils(Neuron):
    """Keeps the contract, and is not the paper's by any convention."""

    def fired(self, m: Tensor, theta: float, levels: int) -> Tensor:
        return (m / theta).ceil().clamp(0, levels)


never_reset, always_raises, hard_reset, rounds = NeverReset(), AlwaysRaises(), HardReset(), RoundForFloor()
clamped, sigmoid, wrong_shape, no_levels = ClampedQCFS(), SigmoidSurrogate(), WrongShape(), NoLevels()
inference, tires, two_levels, leak_up_to_one = Inference(), Tires(), TwoLevels(), LeakUpToOne()
torch_clamp, counts, exits, tired = TorchClamp(), SpikesNotScaled(), Exits(), Tired()
frozen_sigmoid, downhill, nan_at_three_quarters = FrozenSigmoid(), Downhill(), NaNAtThreeQuarters()
no_backward, ceils = NoBackward(), Ceils()
