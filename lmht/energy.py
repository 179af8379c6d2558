"""Spikes, synaptic operations and energy (Sec. 5, "SOPs"; 0.9 pJ an accumulate, 4.6 pJ a multiply-accumulate)."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lmht.graph import (
    ADDING,
    DIVIDING,
    SCALING,
    Flow,
    Kind,
    Step,
    aliases,
    check_batch,
    check_time,
    check_values,
    evaluating,
    flow,
    operands,
    runnable,
    unwrap,
    works_in_place,
)
from lmht.networks.base import MultiStep
from lmht.neurons import Neuron

PJ_PER_AC = 0.9
PJ_PER_MAC = 4.6

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
        uncounted: operations whose cost is in none of these numbers, because nothing says what they cost in spikes: products of
            two activations (attention), and whatever :mod:`lmht.graph` does not know.
    """

    sops: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    macs: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    spikes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    uncounted: list[str] = field(default_factory=list)

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
    assert isinstance(layer, nn.modules.conv._ConvNd)
    # every input channel reaches out_channels / groups outputs, in every sample alike
    maps = spikes.sum((0, 1), keepdim=True, dtype=torch.float64)
    ones = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64, device=spikes.device)
    dimensions = len(layer.kernel_size)
    if layer.transposed:
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dimensions - 1]
        crop: Any = (layer.stride, layer.padding, layer.output_padding, 1, layer.dilation)
        reached = transposed(maps, ones, None, *crop)
    else:
        padding: Any = layer.padding
        if layer.padding_mode != "zeros":
            maps, padding = F.pad(maps, layer._reversed_padding_repeated_twice, layer.padding_mode), 0
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[dimensions - 1]
        reached = convolve(maps, ones, None, layer.stride, padding, layer.dilation)
    return float(reached.sum()) * layer.out_channels / layer.groups


def _macs(layer: nn.Module, x: Tensor, out: Tensor) -> float:
    """Multiply-accumulates of a layer on analogue values; at an image border those with padding count too."""
    assert isinstance(layer.weight, Tensor)
    from_input = isinstance(layer, nn.modules.conv._ConvNd) and layer.transposed
    # a weight's first axis is the output's channels, a transposed convolution's the input's
    return (x if from_input else out).numel() * layer.weight[0].numel()


class _Counter(fx.Interpreter):
    """Runs the network and carries, beside each value that is made of spikes, the spike counts that it stands for."""

    def __init__(self, network: nn.Module, found: Flow, into: Operations) -> None:
        super().__init__(runnable(network, found))
        self.steps, self.into = {step.node: step for step in found.steps}, into
        self.counts: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        step = self.steps.get(n)
        if step is not None and step.kind is Kind.POOLING:  # asked first: it may work in place
            source = step.inputs[0]
            if source in self.counts and bool((self.env[source] < 0).any()):
                raise ValueError(f"can't count: {step.name} sees negated spikes, and which it hands on is not known")
        value = super().run_node(n)
        if step is not None:
            self._count(step, value)
        return value

    def _count(self, step: Step, value: Any) -> None:
        node, module = step.node, step.module
        counts = [self.counts[source] for source in step.inputs if source in self.counts]
        if isinstance(module, Neuron):
            self.counts[node] = (value / module.theta).round()
            self.into.spikes[str(node.target)] += float(self.counts[node].sum(dtype=torch.float64))
        elif step.kind is Kind.SYNAPSE:
            assert module is not None
            if counts:
                self.into.sops[str(node.target)] += fan_out_sum(module, counts[0])
            else:
                self.into.macs[str(node.target)] += _macs(module, self.env[step.inputs[0]], value)
        elif step.kind in (Kind.LINEAR, Kind.POOLING) and len(counts) == len(step.inputs):
            self.counts[node] = self._passed_on(step, counts, value)

    def _passed_on(self, step: Step, counts: list[Tensor], value: Tensor) -> Any:
        """The spikes that a linear operation or a pool hands on; signs and constant factors change their size, not their number,
        unless a factor is 0."""
        node = step.node
        if step.module is not None:
            return step.module(counts[0])
        if node.target in ADDING:
            one, other = operands(node)
            return self._of(one) + self._of(other)
        if node.target in SCALING:
            whole = counts[0].broadcast_to(value.shape)  # a factor may have more axes
            factors = [self._of(n) if isinstance(n, fx.Node) else n for n in node.args if n not in step.inputs]
            divides = node.target in DIVIDING or not factors
            return whole if divides else whole * (torch.as_tensor(factors[0], device=whole.device) != 0)
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._of)
        return getattr(super(), node.op)(node.target, args, kwargs)

    def _of(self, node: Any) -> Any:
        if not isinstance(node, fx.Node):
            return node
        return self.counts[node] if node in self.counts else self.env[node]


@torch.no_grad()
def count_operations(network: nn.Module, images: Tensor) -> Operations:
    """Count spikes, SOPs and MACs of a network in eval mode, as means over a batch of images.

    Args:
        network: an SNN (:class:`~lmht.networks.MultiStep` or :class:`~lmht.networks.Network`) or any ANN that torch.fx can trace,
            also inside DataParallel, DistributedDataParallel, AveragedModel or what torch.compile returns; modes are kept.
        images: ``[N, ...]`` (or frames ``[T, N, ...]``), N >= 1.

    Raises:
        ValueError: no images, what :func:`lmht.graph.check_batch` refuses, weights without values, neurons in a module that does
            not say where time starts, a layer behind an operation on spikes that is not known, a ReLU or max-pool on negated
            spikes, or a network that :func:`lmht.graph.flow` refuses.
    """
    network = unwrap(network)
    check_values(network)
    if not isinstance(images, Tensor) or not images.numel():
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"count_operations takes a batch of at least one image, got {got}")
    spiking = any(isinstance(module, Neuron) for module in network.modules())
    if spiking:
        check_time(network)
    axis = int(isinstance(network, MultiStep) and network.frames)
    n = images.shape[axis]
    at_once = max(1, AT_ONCE * n // images.numel())
    found = flow(network)
    if spiking:
        _refuse_doubt(found)
    check_batch(network, found, images)
    totals = Operations(uncounted=[step.name for step in found.steps if _costs(step)])
    with evaluating(network):
        for part in images.split(at_once, axis):
            _Counter(network, found, totals).run(part)
    for counted in (totals.sops, totals.macs, totals.spikes):
        for name in counted:
            counted[name] /= n
    if not math.isfinite(totals.total_sops + sum(totals.spikes.values())):
        raise ValueError("the spikes can't be counted: images or weights hold NaN or infinite values")
    return totals


def _costs(step: Step) -> bool:
    """Whether an operation that is not counted multiplies or has weights, or may; comparisons are free, as in the paper."""
    weighs = step.module is not None and any(True for _ in step.module.parameters())
    product = sum(isinstance(one, fx.Node) for one in (*step.node.args, *step.node.kwargs.values())) > 1
    return step.kind is Kind.UNKNOWN or (step.kind is Kind.NOT_AFFINE and (weighs or product))


def _refuse_doubt(found: Flow) -> None:
    """ValueError if it can't be said whether a layer sees spikes, behind an operation on spikes that is not known."""
    doubts: dict[fx.Node, str] = {}
    modules = {str(step.node.target): step.module for step in found.steps if step.module is not None}
    for step in found.steps:
        doubt = next((doubts[node] for node in step.inputs if node in doubts), None)
        if step.kind is Kind.UNKNOWN and step.sources:
            doubt = step.name
        if step.kind is Kind.SYNAPSE and doubt:
            raise ValueError(
                f"can't count {step.name}: {doubt} before it is not known, so it may see spikes or analogue values"
            )
        if doubt and step.kind is not Kind.ACTIVATION:
            doubts[step.node] = doubt
        if step.kind is Kind.UNKNOWN and step.sources and works_in_place(step.node):
            doubts |= dict.fromkeys(aliases(step.inputs[0], modules), step.name)
