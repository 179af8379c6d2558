"""T-GIM and leak: how Omega and lambda are parameterised, and where they start (Eq. 7)."""

from typing import Literal

import torch
from torch import Tensor, nn

from lmht.functional import check_steps

Start = Literal["uniform", "identity"]


class TGIM(nn.Module):
    """Holds one layer's T-GIM ``Omega [T, T]`` and leak ``lambda``; ``forward()`` returns both, differentiable."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        check_steps(steps)
        self.steps = steps

    def forward(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


class SigmoidTGIM(TGIM):
    """Bounded as in the released code: ``Omega = 2 * sigmoid(a) / T`` in (0, 2/T), ``lambda = sigmoid(alpha) + 1/2`` in
    (1/2, 3/2).

    Starts at ``a = alpha = 0``, that is at ``Omega = 1/T``, ``lambda = 1`` exactly. It can't hold the identity matrix: no entry
    reaches 2/T, and for T > 1 none reaches 0 (use :class:`FreeTGIM` for that corner).
    """

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.a = nn.Parameter(torch.zeros(steps, steps))
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self) -> tuple[Tensor, Tensor]:
        return 2 * self.a.sigmoid() / self.steps, self.alpha.sigmoid() + 0.5


class FreeTGIM(TGIM):
    """Omega and lambda are the parameters themselves, so both corners are exact starting points.

    ``start="uniform"`` is ``Omega = 1/T`` (the QCFS corner), ``start="identity"`` is ``Omega = I`` (vanilla LIF, with ``leak``).
    """

    def __init__(self, steps: int, start: Start = "uniform", leak: float = 1.0) -> None:
        super().__init__(steps)
        if start not in ("uniform", "identity"):
            raise ValueError(f"start must be 'uniform' or 'identity', got {start!r}")
        self.omega = nn.Parameter(torch.eye(steps) if start == "identity" else torch.full((steps, steps), 1 / steps))
        self.leak = nn.Parameter(torch.tensor(float(leak)))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.omega, self.leak


class FixedTGIM(TGIM):
    """Omega and leak that are not trained; ``leak`` may hold one value a step, ``[T, 1]`` (Theorem A.2)."""

    omega: Tensor
    leak: Tensor

    def __init__(self, omega: Tensor, leak: Tensor) -> None:
        super().__init__(len(omega))
        self.register_buffer("omega", omega.detach().clone())
        self.register_buffer("leak", leak.detach().clone())

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.omega, self.leak
