"""snnTorch: our neurons in its loops over time-steps, its neurons in our networks."""

import snntorch
import torch
from torch import Tensor, nn

from lmht import functional
from lmht.neurons import MHT, Neuron


class ToSnnTorch(nn.Module):
    """An IF, LIF or M-HT neuron as snnTorch steps one: ``spikes, mem = neuron(current, mem)``, with the spikes of its T-step run.

    ``mem`` is the potential after the reset, and ``v(0)`` where none is given; spikes are ``s(t) * theta``.

    Args:
        neuron: :class:`~lmht.neurons.MHT` or a subclass. Its T does not matter here.

    Raises:
        ValueError: the neuron has a T-GIM.
    """

    def __init__(self, neuron: MHT) -> None:
        super().__init__()
        if not isinstance(neuron, MHT):
            raise ValueError(
                f"{type(neuron).__name__} can't be stepped: its T-GIM mixes all time-steps, later ones too; give it whole "
                "sequences [T, N, ...] with folded=False, or take an MHT"
            )
        self.neuron = neuron

    def forward(self, current: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time-step: ``[N, ...]`` and ``[N, ...]`` to the same two."""
        n = self.neuron
        spikes, v = functional.mht(
            current.to(functional.compute_dtype(current)).unsqueeze(0),
            levels=n.levels,
            theta=n.theta,
            leak=n.leak,
            v0=n.v0 if mem is None else mem,
            temporal_gradient=n.temporal_gradient,
        )
        return (spikes[0] * n.theta).to(current.dtype), v[0]


class FromSnnTorch(Neuron):
    """An snnTorch neuron as an activation of our networks: ``lambda: FromSnnTorch(Leaky(0.9, init_hidden=True), steps=T)``.

    It emits what the node emits (``s(t)``, where ours emit ``s(t) * theta``), and starts from ``reset_mem()`` at every pass.
    Conversion and reparameterisation refuse it by name; operations are counted.

    Args:
        node: a ``snntorch.SpikingNeuron`` with ``init_hidden=True``, so that it takes a current and gives spikes alone.
        steps: ``T``.

    Raises:
        ValueError: the node takes or gives more than that, or its spikes are not 1.
    """

    def __init__(self, node: nn.Module, steps: int) -> None:
        super().__init__(1, steps)
        if not isinstance(node, snntorch.SpikingNeuron) or not node.init_hidden or node.output:
            raise ValueError(
                f"{type(node).__name__} must be a snntorch.SpikingNeuron with init_hidden=True and output=False, "
                "so that it takes a current and gives spikes alone"
            )
        if float(node.graded_spikes_factor) != 1:
            raise ValueError(
                f"{type(node).__name__} has graded_spikes_factor = {float(node.graded_spikes_factor):g}; a spike counts 1: "
                "multiply by it in the layer behind"
            )
        self.node = node

    def emit(self, x: Tensor) -> Tensor:
        self.node.reset_mem()
        spikes = torch.stack([self.node(step) for step in x]).to(x.dtype)
        self.node.reset_mem()  # keeps no graph: the network can be copied
        return spikes
