"""snnTorch: ``immediate`` (``Leaky(reset_delay=False)``) and ``delayed``, its default, which resets one step after the spike.

pytest theorems/ --impl theorems.adapters.snntorch:immediate
"""

import snntorch
import torch
from torch import Tensor

from theorems.adapters import Convention


class Leaky:
    """``Leaky`` with reset by subtraction."""

    def __init__(self, delayed: bool) -> None:
        self.delayed = delayed
        self.name = f"snnTorch Leaky, reset_delay={delayed}"
        self.conventions = (
            Convention("fires above the threshold, not at it (> instead of >=)", current=[1], spikes=[0], v=[1]),
            Convention("clamps a leak above 1 to 1", current=[0], spikes=[0], v=[0.5], leak=1.25, v0=0.5),
            Convention(
                "spikes are float32, which turns half-precision potentials into float32",
                current=[0.25], spikes=[0], v=[0.25], dtype=torch.bfloat16, v_dtype=torch.float32,
            ),
            Convention("resets one step after the spike", current=[1.5, 0], spikes=[1, 0], v=[1.5, 0.5])
            if delayed
            else Convention("loses a spike where the reset left more than theta", current=[2.5, 0], spikes=[1, 0], v=[1.5, 1.5]),
        )  # fmt: skip

    def integrate_and_fire(
        self, current: Tensor, *, theta: float, leak: float = 1.0, v0: float | Tensor = 0.0
    ) -> tuple[Tensor, Tensor]:
        node = snntorch.Leaky(
            beta=torch.tensor(leak, dtype=current.dtype),
            threshold=torch.tensor(theta, dtype=current.dtype),
            reset_mechanism="subtract",
            reset_delay=self.delayed,
        ).to(current.device)
        v = torch.as_tensor(v0, dtype=current.dtype, device=current.device).expand(current.shape[1:])
        spikes, potentials = [], []
        for step in current:
            s, v = node(step, v)
            spikes.append(s.to(current.dtype))
            potentials.append(v)
        return torch.stack(spikes), torch.stack(potentials)


immediate, delayed = Leaky(delayed=False), Leaky(delayed=True)
