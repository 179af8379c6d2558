"""The neurons as modules: thin wrappers of :mod:`lmht.kernels`, without state between two forward passes.

A neuron takes ``[T*N, ...]`` with the steps of one sample N rows apart (the folded layout in which a network's convolutions
run), or ``[T, N, ...]`` with ``folded=False``, and returns the same shape.
"""

import torch
from torch import Tensor, nn

from lmht import functional, kernels
from lmht.tgim import TGIM, SigmoidTGIM


class Neuron(nn.Module):
    """What all spiking neurons share: T steps, threshold theta, v(0), and the layout.

    Args:
        levels: number of threshold levels ``L >= 1``.
        steps: number of time-steps ``T >= 1``.
        theta: firing threshold, > 0; not learned.
        v0: membrane potential before the first step, in units of the current (``theta / 2`` is QCFS's shift).
        folded: the layout of what it takes and gives, unless a call names another: ``[T*N, ...]``, or ``[T, N, ...]`` if False.
    """

    def __init__(self, levels: int, steps: int, *, theta: float = 1.0, v0: float = 0.0, folded: bool = True) -> None:
        super().__init__()
        functional.check_levels(levels)
        functional.check_theta(theta)
        functional.check_steps(steps)
        self.levels, self.steps, self.theta, self.v0 = levels, steps, float(theta), float(v0)
        self.folded = folded

    def forward(self, x: Tensor, folded: bool | None = None) -> Tensor:
        """Emit ``s(t) * theta``.

        Args:
            x: current, ``[T*N, ...]``, or ``[T, N, ...]`` if not ``folded``.
            folded: which of the two layouts ``x`` has; default the neuron's own.

        Raises:
            ValueError: the first axis is not a multiple of T (folded), or not T (unfolded).
        """
        if self.folded if folded is None else folded:
            if x.dim() < 1 or x.shape[0] % self.steps:
                raise ValueError(
                    f"folded input must be [T*N, ...] with T = {self.steps}, got shape {tuple(x.shape)}; "
                    "fold time into the batch, or pass folded=False for [T, N, ...]"
                )
            return self.emit(x.unflatten(0, (self.steps, x.shape[0] // self.steps))).flatten(0, 1)
        if x.dim() < 2 or x.shape[0] != self.steps:
            raise ValueError(
                f"unfolded input must be [T, N, ...] with T = {self.steps}, got shape {tuple(x.shape)}; "
                "put time first, or leave folded=True for [T*N, ...]"
            )
        return self.emit(x)

    def emit(self, x: Tensor) -> Tensor:
        """The neuron on ``[T, N, ...]``."""
        raise NotImplementedError

    def constants(self) -> list[float]:
        """What makes the neuron and is not learned, as a checkpoint keeps it: L, T, theta, v(0)."""
        return [self.levels, self.steps, self.theta, self.v0]

    def get_extra_state(self) -> Tensor:
        """:meth:`constants` as one float64 tensor, so that whatever walks a state dict finds tensors only."""
        return torch.tensor(self.constants(), dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor | dict[str, float]) -> None:
        """Take theta, v(0) and the like from a checkpoint.

        The first runs' checkpoints hold a dict of L, T, theta and v(0); what they lack stays as the neuron was made.

        Raises:
            ValueError: it is of another kind of neuron, L or T, or it has no values (meta device).
        """
        wanted = len(self.constants())
        if isinstance(state, dict):
            kept = [state[name] for name in ("levels", "steps", "theta", "v0")]
            state = torch.tensor([*kept, *self.constants()[4:]], dtype=torch.float64)
        if not isinstance(state, Tensor) or state.shape != (wanted,) or functional.symbolic(state):
            raise ValueError(f"checkpoint's entry for a {type(self).__name__} must be {wanted} numbers, got {state!r}")
        levels, steps, *rest = state.tolist()
        if (round(levels), round(steps)) != (self.levels, self.steps):
            raise ValueError(
                f"checkpoint has L = {levels:g}, T = {steps:g}, the neuron L = {self.levels}, T = {self.steps}; for the other "
                "weights alone take the keys that end in '_extra_state' or belong to a T-GIM out and load with strict=False"
            )
        self.take(*rest)

    def take(self, theta: float, v0: float) -> None:
        """Set what :meth:`constants` has beyond L and T."""
        self.theta, self.v0 = theta, v0

    def extra_repr(self) -> str:
        layout = "" if self.folded else ", folded=False"
        return f"levels={self.levels}, steps={self.steps}, theta={self.theta:g}, v0={self.v0:g}{layout}"


class MHT(Neuron):
    """Multi-hierarchical threshold neuron (Eqs. 5-6).

    Args:
        leak: leak ``lambda``; not learned.
        temporal_gradient: keep the gradient through ``v(t-1)`` and the reset (vanilla STBP).
    """

    def __init__(
        self,
        levels: int,
        steps: int,
        *,
        theta: float = 1.0,
        leak: float = 1.0,
        v0: float = 0.0,
        temporal_gradient: bool = True,
        folded: bool = True,
    ) -> None:
        super().__init__(levels, steps, theta=theta, v0=v0, folded=folded)
        self.leak, self.temporal_gradient = float(leak), temporal_gradient

    def constants(self) -> list[float]:
        return [*super().constants(), self.leak, self.temporal_gradient]

    def take(self, theta: float, v0: float, leak: float = 1.0, temporal_gradient: float = True) -> None:
        super().take(theta, v0)
        self.leak, self.temporal_gradient = leak, bool(round(temporal_gradient))

    def emit(self, x: Tensor) -> Tensor:
        return kernels.mht(
            x,
            levels=self.levels,
            theta=self.theta,
            leak=self.leak,
            v0=self.v0,
            temporal_gradient=self.temporal_gradient,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, leak={self.leak:g}, temporal_gradient={self.temporal_gradient}"


class LIF(MHT):
    """Leaky integrate-and-fire neuron with soft reset (Eqs. 1-2): M-HT with one level."""

    def __init__(
        self,
        steps: int,
        *,
        theta: float = 1.0,
        leak: float = 0.5,
        v0: float = 0.0,
        temporal_gradient: bool = True,
        folded: bool = True,
    ) -> None:
        super().__init__(1, steps, theta=theta, leak=leak, v0=v0, temporal_gradient=temporal_gradient, folded=folded)


class IF(MHT):
    """Integrate-and-fire neuron with soft reset (Eqs. 1-2, ``lambda = 1``): M-HT with one level and no leak."""

    def __init__(
        self,
        steps: int,
        *,
        theta: float = 1.0,
        v0: float = 0.0,
        temporal_gradient: bool = True,
        folded: bool = True,
    ) -> None:
        super().__init__(1, steps, theta=theta, v0=v0, temporal_gradient=temporal_gradient, folded=folded)


class LMHT(Neuron):
    """Learnable multi-hierarchical threshold neuron (Eqs. 7-9): M-HT behind a learned T-GIM, temporal chain detached.

    Args:
        tgim: Omega and lambda; default :class:`~lmht.tgim.SigmoidTGIM`, which starts at ``Omega = 1/T``, ``lambda = 1``.
    """

    def __init__(
        self,
        levels: int,
        steps: int,
        *,
        theta: float = 1.0,
        v0: float = 0.0,
        tgim: TGIM | None = None,
        folded: bool = True,
    ) -> None:
        super().__init__(levels, steps, theta=theta, v0=v0, folded=folded)
        self.tgim = SigmoidTGIM(steps) if tgim is None else tgim
        if self.tgim.steps != steps:
            raise ValueError(f"the T-GIM is for {self.tgim.steps} steps, the neuron has steps = {steps}")

    def emit(self, x: Tensor) -> Tensor:
        omega, leak = self.tgim()
        return kernels.lmht(x, levels=self.levels, theta=self.theta, omega=omega, leak=leak, v0=self.v0)


class QCFS(nn.Module):
    """Quantization-clip-floor-shift activation (Eq. 4): the quantised ANN's activation, on any shape.

    Args:
        levels: number of quantisation levels ``Tq >= 1``.
        scale: initial ``vartheta``, learned.
    """

    def __init__(self, levels: int, scale: float = 8.0) -> None:
        super().__init__()
        functional.check_levels(levels)
        if not scale > 0:
            raise ValueError(f"scale must be > 0, got {scale!r}")
        self.levels = levels
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        return kernels.qcfs(x, levels=self.levels, scale=self.scale)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"
