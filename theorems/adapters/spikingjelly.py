"""SpikingJelly 2: ``if_node`` (``IFNode``) and ``ilif_node`` (``ILIFNode``, its multi-level neuron).

    pytest theorems/ --impl theorems.adapters.spikingjelly:if_node

A leak acts on the node's potential between steps, so that leaks above 1 are tested too.
"""

from typing import Any

import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor

from theorems.adapters import Convention


def drive(node: Any, current: Tensor, leak: float, v0: float | Tensor) -> tuple[Tensor, Tensor]:
    """Steps a soft-reset node through ``[T, ...]``: spikes, and potentials after the reset."""
    node.v = torch.as_tensor(v0, dtype=current.dtype, device=current.device).expand(current.shape[1:]).clone()
    spikes, potentials = [], []
    for step in current:
        node.v = leak * node.v
        spikes.append(node(step))
        potentials.append(node.v)
    return torch.stack(spikes), torch.stack(potentials)


class IFNode:
    """``IFNode(v_reset=None)``."""

    name = "SpikingJelly IFNode"
    conventions: tuple[Convention, ...] = ()

    def integrate_and_fire(
        self, current: Tensor, *, theta: float, leak: float = 1.0, v0: float | Tensor = 0.0
    ) -> tuple[Tensor, Tensor]:
        return drive(neuron.IFNode(v_threshold=theta, v_reset=None), current, leak, v0)


class ILIFNode:
    """``ILIFNode`` with ``L`` levels; its own decay is switched off (``tau = inf``)."""

    name = "SpikingJelly ILIFNode"
    conventions = (Convention("rounds to the nearest level instead of down", current=[0.75], spikes=[1], v=[-0.25]),)

    def mht(
        self, current: Tensor, *, levels: int, theta: float, leak: float = 1.0, v0: float | Tensor = 0.0
    ) -> tuple[Tensor, Tensor]:
        count = surrogate.MultiLevelSpikeCount(levels)
        return drive(neuron.ILIFNode(tau=float("inf"), v_threshold=theta, surrogate_function=count), current, leak, v0)


if_node, ilif_node = IFNode(), ILIFNode()
