"""Spikes, synaptic operations and energy (Sec. 5, "SOPs"; 0.9 pJ an accumulate, 4.6 pJ a multiply-accumulate)."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lmht.graph import Synapse, is_activation, trace
from lmht.networks.base import Network
from lmht.neurons import Neuron

PJ_PER_AC = 0.9
PJ_PER_MAC = 4.6
_LINEAR_CALLS = {"flatten", "unflatten", "transpose", "mean"}

AT_ONCE = 1 << 20  # values of the images counted at once: all of a network's spike counts are kept meanwhile


@dataclass
class Operations:
    """Operations of a network, per image.

    Attributes:
        sops: synaptic operations of every spike-driven layer: spikes times fan-out. A step with k spikes is k operations; the
            fan-out at an image border counts only the connections that exist; spikes behind an average pool count as their
            average. Empty for an ANN.
        macs: multiply-accumulates of every layer that sees analogue values (the first one of an SNN, all of an ANN).
        spikes: spikes of every neuron layer, summed over time.
    """

    sops: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    macs: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    spikes: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def total_sops(self) -> float:
        return sum(self.sops.values())

    @property
    def total_macs(self) -> float:
        return sum(self.macs.values())

    @property
    def energy_mj(self) -> float:
        """The paper's figure, ``0.9 * SOPs[G]`` mJ an image; it leaves the first layer's MACs out."""
        return PJ_PER_AC * self.total_sops * 1e-9

    @property
    def energy_with_macs_mj(self) -> float:
        """SOPs at 0.9 pJ and MACs at 4.6 pJ, in mJ an image."""
        return self.energy_mj + PJ_PER_MAC * self.total_macs * 1e-9


def fan_out_sum(layer: nn.Module, spikes: Tensor) -> float:
    """Sum over all spikes of the number of connections that each one drives in ``layer``."""
    if isinstance(layer, nn.Linear):
        return float(spikes.sum(dtype=torch.float64)) * layer.out_features
    assert isinstance(layer, nn.Conv2d)
    maps = spikes.double().sum(1, keepdim=True)  # every input channel reaches out_channels / groups outputs
    ones = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64, device=spikes.device)
    reached = F.conv2d(maps, ones, None, layer.stride, layer.padding, layer.dilation)
    return float(reached.sum()) * layer.out_channels / layer.groups


class _Counter(fx.Interpreter):
    """Runs the network and carries, beside each value that is made of spikes, the spike counts that it stands for."""

    def __init__(self, network: nn.Module, into: Operations) -> None:
        graph, modules = trace(network)
        super().__init__(fx.GraphModule(network, graph))
        self.layers, self.into = modules, into
        self.counts: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        sources = n.all_input_nodes
        counts = [self.counts.get(source) for source in sources]
        module = self.layers[str(n.target)] if n.op == "call_module" else None
        if isinstance(module, Synapse):
            if counts[0] is None:
                weights = module.weight.numel() / (
                    module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
                )
                self.into.macs[str(n.target)] += value.numel() * weights
            else:
                self.into.sops[str(n.target)] += fan_out_sum(module, counts[0])
        elif isinstance(module, Neuron):
            self.counts[n] = (value / module.theta).round()
            self.into.spikes[str(n.target)] += float(self.counts[n].sum(dtype=torch.float64))
        elif module is not None and not is_activation(module):
            if counts[0] is not None and not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm):
                self.counts[n] = module(counts[0])
        elif n.op in ("call_function", "call_method") and all(c is not None for c in counts) and sources:
            name = n.target if isinstance(n.target, str) else n.target.__name__
            if name in _LINEAR_CALLS or name == "add":
                args = fx.map_arg(n.args, lambda a: self.counts[a])
                run = super().call_method if n.op == "call_method" else super().call_function
                self.counts[n] = run(n.target, args, dict(n.kwargs))
        return value


@torch.no_grad()
def count_operations(network: Network, images: Tensor) -> Operations:
    """Count spikes, SOPs and MACs of a network in eval mode, as means over a batch of images.

    Args:
        network: an SNN or an ANN; its modules' modes are left as they were.
        images: ``[N, C, H, W]`` (or frames ``[T, N, C, H, W]``), N >= 1.
    """
    axis = 1 if network.frames else 0
    n = images.shape[axis]
    if n < 1:
        raise ValueError("count_operations needs at least one image")
    at_once = max(1, AT_ONCE * n // images.numel())
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        totals = Operations()
        for part in images.split(at_once, axis):
            _Counter(network, totals).run(part)
    finally:
        for module, training in modes.items():
            module.training = training
    for counted in (totals.sops, totals.macs, totals.spikes):
        for name in counted:
            counted[name] /= n
    assert math.isfinite(totals.total_sops)
    return totals
