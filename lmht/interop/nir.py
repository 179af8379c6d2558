"""NIR, the neuromorphic intermediate representation: networks of one level without T-GIM, for other simulators and chips.

NIR 1.0 has no neuron like ours: its IF fires above the threshold, resets to a value, and starts at 0; ours fires at the threshold,
subtracts it, and starts at v(0). So each neuron is written as the parts that NIR itself explains IF by, with the reset as an edge::

    currents --> I (NAME.v) --> Threshold (NAME.spikes) --> Scale by theta (NAME) --> next layers
                  ^---------- Scale by -1 (NAME.reset) <-----------'

- What goes round the loop arrives before the next current: one step later in a simulator of steps, at once in continuous time.
- I starts at 0 and so holds ``v - v(0)``; the threshold is ``theta - v(0)``, moved down to the next float, since NIR's is ``>``.
- Time is in steps: ``r = 1`` adds a step's current as it is.
"""

import math
from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from lmht.graph import (
    ADDING,
    Kind,
    Norm,
    Step,
    called,
    check_time,
    check_unchanged,
    evaluating,
    flow,
    operands,
    runnable,
    unwrap,
)
from lmht.networks import base
from lmht.neurons import Neuron
from lmht.reparameterize import is_plain, window_tgim

_ADDING = [target for target in ADDING if "sub" not in getattr(target, "__name__", str(target))]
_NOTHING = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(base.checked_images, base.folded_images, base.repeat_in_time, base.per_step, base.time_mean),
)


@torch.no_grad()
def to_nir(network: nn.Module, images: Tensor) -> nir.NIRGraph:
    """The network as a NIR graph, ``nir.write(path, to_nir(network, images))``.

    Its input is one step's (a static image is fed at every step), its output the step's logits, which our networks average over
    their T steps. Batch normalisation is folded into the layer before it. Arrays have the network's dtype; a simulator that
    computes in it has the same spikes wherever rounding decides none, as it sums in another order (dyadic numbers: always).

    Args:
        network: :class:`~lmht.networks.MultiStep` (or :class:`~lmht.networks.Network`), float32 or float64, whose neurons have one
            level, the identity as T-GIM and no leak: IF, what :func:`~lmht.conversion.to_if` makes, and what
            :func:`~lmht.reparameterize.reparameterize` makes of them. Taken in eval mode.
        images: an input of the network, for the shapes.

    Raises:
        ValueError: a neuron of more levels, another T-GIM or a leak, an operation that NIR does not have (max-pooling, products), a
            module used twice, another dtype, images of another shape, or what :func:`lmht.graph.check_unchanged` refuses.
    """
    network = unwrap(network)
    check_unchanged(network)
    network = check_time(network)
    dtypes = {parameter.dtype for parameter in network.parameters()}
    if not dtypes <= {torch.float32, torch.float64} or len(dtypes) != 1:
        raise ValueError(
            f"NIR export needs one dtype, float32 or float64, got {sorted(map(str, dtypes))}; call .float() first"
        )
    found = flow(network)
    try:
        with evaluating(network):
            ShapeProp(runnable(network, found)).propagate(images)
    except RuntimeError as error:
        why = str(error.__cause__ or error).split("\n")[0]
        raise ValueError(f"the network takes no images of shape {list(images.shape)}, {images.dtype}: {why}") from error
    graph = _Graph({step.node: step for step in found.steps}, dtypes.pop())
    graph.nodes["input"] = nir.Input({"input": np.array(images.shape[1 + network.frames :])})
    for step in found.steps:
        graph.add(step)
    end = next(node for node in found.graph.nodes if node.op == "output").all_input_nodes[0]
    graph.put("output", nir.Output({"output": np.array(_shape(end))}), graph.carried(end))
    return nir.NIRGraph(graph.nodes, graph.edges)


class _Graph:
    """What has been written so far, and which of its nodes sum up to a value of the network."""

    def __init__(self, steps: dict[fx.Node, Step], dtype: torch.dtype) -> None:
        self.steps, self.dtype = steps, dtype
        self.nodes: dict[str, nir.NIRNode] = {}
        self.edges: list[tuple[str, str]] = []
        self.summands: dict[fx.Node, list[str]] = {}

    def carried(self, *values: Any) -> list[str]:
        """The nodes whose sum a value is; the network's input is its own."""
        nodes = [value for value in values if isinstance(value, fx.Node)]  # the rest is a sum's own 0
        return [name for node in nodes for name in (["input"] if node.op == "placeholder" else self.summands[node])]

    def put(self, name: str, node: nir.NIRNode, sources: list[str]) -> None:
        if name in self.nodes:
            raise ValueError(f"{name} is used in two places, which a NIR node can't be; give each its own")
        if len(set(sources)) < len(sources):
            raise ValueError(
                f"{name} sees the same value twice in a sum, which NIR's edges can't say; scale it instead"
            )
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]

    def add(self, step: Step) -> None:
        module, name = step.module, str(step.node.target)
        adds = called(step.node) in _ADDING and step.kind is Kind.LINEAR
        if adds and step.node.kwargs.get("alpha", 1) != 1:
            raise ValueError(f"{step.name} scales by alpha, which NIR's edges can't; scale in the layer before")
        sources = self.carried(*(operands(step.node) if adds else step.inputs))
        if step.kind is Kind.NORMALISATION:
            self.summands[step.node] = [self._fold(step)]
        elif adds or type(module) in _NOTHING or called(step.node) in _NOTHING:
            self.summands[step.node] = sources
        elif isinstance(module, Neuron):
            self._put_neuron(step.name, name, module, _shape(step.node), sources)
            self.summands[step.node] = [name]
        else:
            name = name if module is not None else step.node.name
            self.put(name, self._layer(step), sources)
            self.summands[step.node] = [name]

    def _layer(self, step: Step) -> nir.NIRNode:
        module: Any = step.module
        before = _shape(step.inputs[0])
        if type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d):
            return self._synapse(step, module.weight, module.bias)
        if type(module) is nn.AvgPool2d and not module.ceil_mode and module.divisor_override is None:
            padding = np.array(_pair(module.padding))
            if module.count_include_pad or not padding.any():
                return nir.AvgPool2d(np.array(_pair(module.kernel_size)), np.array(_pair(module.stride)), padding)
        if type(module) is nn.AdaptiveAvgPool2d and math.prod(_shape(step.node)[1:]) == 1:
            return nir.AvgPool2d(np.array(before[1:]), np.array(before[1:]), np.array([0, 0]))
        flattens = isinstance(module, nn.Flatten) or called(step.node) in (torch.flatten, "flatten")
        if flattens and step.kind is Kind.LINEAR and len(_shape(step.node)) == 1:
            return nir.Flatten({"input": np.array(before)}, start_dim=0)  # NIR's shapes have no batch axis
        raise ValueError(f"{step.name} has no counterpart in NIR; replace it")

    def _synapse(self, step: Step, weight: Tensor, bias: Tensor | None) -> nir.NIRNode:
        layer: Any = step.module
        before = _shape(step.inputs[0])
        w = self._array(weight)
        b = np.zeros(len(w), w.dtype) if bias is None else self._array(bias)
        if isinstance(layer, nn.Linear):
            if len(before) != 1:
                raise ValueError(f"{step.name} sees {list(before)} a sample, NIR's Affine one axis; flatten before it")
            return nir.Affine(w, b)
        if layer.padding_mode != "zeros":
            raise ValueError(
                f"{step.name} pads with {layer.padding_mode}, NIR's convolutions with zeros; set padding_mode='zeros'"
            )
        options = (layer.stride, layer.padding, layer.dilation)
        if isinstance(layer, nn.Conv1d):
            stride, padding, dilation = (o if isinstance(o, str) else o[0] for o in options)
            return nir.Conv1d(before[1], w, stride, padding, dilation, layer.groups, b)
        return nir.Conv2d(before[1:], w, *options, layer.groups, b)

    def _fold(self, step: Step) -> str:
        """Fold a batch normalisation into the layer that alone feeds it, and return that layer's name."""
        norm, (value,) = step.module, step.inputs
        layer = self.steps.get(value)
        if layer is None or layer.kind is not Kind.SYNAPSE or len(value.users) != 1:
            raise ValueError(
                f"{step.name} can't be folded: no layer with weights, whose output goes nowhere else, stands before it"
            )
        assert isinstance(norm, Norm)
        fuse: Callable[..., Any] = (
            fuse_linear_bn_weights if isinstance(layer.module, nn.Linear) else fuse_conv_bn_weights
        )
        weight, bias = (getattr(layer.module, name) for name in ("weight", "bias"))
        scale = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight
        shift = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
        folded = fuse(weight, bias, norm.running_mean, norm.running_var, norm.eps, scale, shift)
        name = str(value.target)
        self.nodes[name] = self._synapse(layer, *folded)
        return name

    def _put_neuron(self, title: str, name: str, neuron: Neuron, shape: tuple[int, ...], sources: list[str]) -> None:
        if not is_plain(neuron):
            raise ValueError(f"{title} has dynamics of its own; NIR export takes one-level MHT and LMHT neurons")
        if neuron.levels != 1:
            raise ValueError(f"{title} has L = {neuron.levels} levels, a NIR neuron one; see lmht.reparameterize")
        omega, leak = window_tgim(neuron)
        if not torch.equal(omega, torch.eye(neuron.steps).to(omega)):
            raise ValueError(
                f"{title}: its T-GIM is not the identity, it needs the spikes of other steps, and NIR goes step by step"
            )
        if not bool((leak == 1).all()):
            raise ValueError(
                f"{title} has a leak other than 1; NIR has time constants, which mean a leak only with a simulator's step"
            )
        one = self._array(torch.ones(shape))
        threshold = np.nextafter(one * (neuron.theta - neuron.v0), -np.inf)
        self.put(f"{name}.v", nir.I(r=one), [*sources, f"{name}.reset"])
        self.put(f"{name}.spikes", nir.Threshold(threshold), [f"{name}.v"])
        self.put(name, nir.Scale(one * neuron.theta), [f"{name}.spikes"])
        self.put(f"{name}.reset", nir.Scale(-one), [name])

    def _array(self, tensor: Tensor) -> np.ndarray:
        return tensor.detach().to("cpu", self.dtype).numpy()


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Of one sample in one step."""
    return tuple(node.meta["tensor_meta"].shape[1:])


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
