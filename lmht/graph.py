"""What each module and operation of a network is, and which activation feeds which layer: the network's graph, by torch.fx.

This is the one place that decides it. Conversion, reparameterisation, certificate and counting ask :func:`flow`; an operation that
stands in no table here is :attr:`Kind.UNKNOWN`, and they refuse it by name.
"""

import builtins
import copy
import inspect
import operator
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.prune import BasePruningMethod

from lmht import functional
from lmht.axes import is_number, least_axes, shape_of
from lmht.kernels import use_backend
from lmht.networks import base
from lmht.networks.base import MultiStep
from lmht.neurons import QCFS, Neuron

Synapse = nn.Linear | nn.modules.conv._ConvNd
Norm = nn.modules.batchnorm._NormBase


class Kind(Enum):
    """What an operation does to a current, in eval mode and step by step (no step sees another)."""

    SYNAPSE = "weights, and a bias"
    NORMALISATION = "affine by running statistics"
    ACTIVATION = "where a layer ends: a neuron, QCFS; an ANN's ReLU"
    LINEAR = "linear, without parameters"
    OFFSET = "affine, with an offset that stands in no bias"
    POOLING = "not affine, but a common factor of its input is one of its output"
    NOT_AFFINE = "known, and not affine"
    UNKNOWN = "not known, or it mixes time-steps"


def _classes(*names: str) -> list[type[nn.Module]]:
    return [getattr(nn, name + dimensions) for name in names for dimensions in ("1d", "2d", "3d")]


_MODULE_AXES = {nn.Flatten: "start_dim"} | dict.fromkeys(
    [nn.Unflatten, nn.GLU, nn.Softmax, nn.LogSoftmax, nn.Softmin], "dim"
)
_MODULES: dict[type[nn.Module], Kind] = {
    **dict.fromkeys([nn.Linear, *_classes("Conv", "ConvTranspose")], Kind.SYNAPSE),
    **dict.fromkeys([nn.SyncBatchNorm, *_classes("BatchNorm", "InstanceNorm")], Kind.NORMALISATION),
    **dict.fromkeys([nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.AlphaDropout], Kind.LINEAR),
    **dict.fromkeys([nn.FeatureAlphaDropout, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle], Kind.LINEAR),
    **dict.fromkeys([nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.Fold, nn.Unfold], Kind.LINEAR),
    **dict.fromkeys(_classes("Dropout", "AvgPool", "AdaptiveAvgPool", "ZeroPad", "ConstantPad"), Kind.LINEAR),
    **dict.fromkeys(_classes("CircularPad", "ReflectionPad", "ReplicationPad"), Kind.LINEAR),
    **dict.fromkeys([nn.ReLU, *_classes("MaxPool", "AdaptiveMaxPool")], Kind.POOLING),
    **dict.fromkeys([nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.ReLU6, nn.LeakyReLU], Kind.NOT_AFFINE),
    **dict.fromkeys([nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink], Kind.NOT_AFFINE),
    **dict.fromkeys([nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Softplus, nn.Softsign], Kind.NOT_AFFINE),
    **dict.fromkeys([nn.PReLU, nn.RReLU, nn.Threshold, nn.GLU, *_classes("LPPool")], Kind.NOT_AFFINE),
    **dict.fromkeys([nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d], Kind.NOT_AFFINE),
    **dict.fromkeys([nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm], Kind.NOT_AFFINE),
}
# What makes a subclass another operation than its base.
_OWN = {"forward", "__call__", "_conv_forward", "weight", "bias", "running_mean", "running_var"}

ADDING = (operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "sub")
_NEGATING = (operator.neg, torch.neg)
_MULTIPLYING = (operator.mul, operator.imul, torch.mul, "mul")
DIVIDING = (operator.truediv, operator.itruediv, torch.div, "div")
SCALING = _NEGATING + _MULTIPLYING + DIVIDING
_PRODUCTS = (torch.matmul, operator.matmul, torch.bmm, F.scaled_dot_product_attention, "matmul", "bmm")
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_VIEWS = {
    *(torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze, torch.transpose, torch.permute),
    *("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute"),
    *("contiguous", "expand", "chunk", "split", torch.chunk, torch.split, operator.getitem, *_IN_PLACE),
}
_RESHAPING = (torch.reshape, "reshape", "view")  # row by row: time stays outermost
_LINEAR = (
    "contiguous",
    "clone",
    base.checked_images,
    base.folded_images,
    base.repeat_in_time,
    base.per_step,
    base.time_mean,
    *_NEGATING,
    F.avg_pool1d,
    F.avg_pool2d,
    F.avg_pool3d,
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
    F.interpolate,
    F.pixel_shuffle,
    F.pixel_unshuffle,
    F.fold,
    F.unfold,
)
# they ask themselves what depends on the number of rows
_MAY_COUNT = (*_RESHAPING, torch.cat, torch.stack, base.per_step)
_POOLING = (F.relu, torch.relu, "relu", F.max_pool1d, F.max_pool2d, F.max_pool3d)
_NOT_AFFINE = (torch.sigmoid, torch.tanh, F.gelu, F.silu, F.elu, F.leaky_relu, F.relu6, F.hardtanh, "sigmoid", "tanh")
_DROPOUT = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
_SOFTMAX = (torch.softmax, F.softmax, "softmax")
_PARTS = (torch.chunk, torch.split, "chunk", "split")
# The argument that says which axes an operation is about, by place; its name is "dim" but for flatten's.
_AXES: dict[Any, int] = {
    **dict.fromkeys([torch.flatten, torch.unflatten, torch.mean, torch.sum, torch.squeeze, torch.unsqueeze], 1),
    **dict.fromkeys(["flatten", "unflatten", "mean", "sum", "squeeze", "unsqueeze", torch.cat, torch.stack], 1),
    **dict.fromkeys(_SOFTMAX, 1),
    **dict.fromkeys(_PARTS, 2),
}


@dataclass(frozen=True)
class Step:
    """One operation on data.

    Attributes:
        name: as errors and lists print it.
        module: what is called, if it is a module.
        inputs: where its data come from.
        sources: names of the nearest activations before it; empty: it sees the image alone.
    """

    node: fx.Node
    name: str
    kind: Kind
    module: nn.Module | None
    inputs: tuple[fx.Node, ...]
    sources: frozenset[str]


@dataclass(frozen=True)
class Flow:
    """A network's operations on data, in order of execution."""

    graph: fx.Graph
    steps: tuple[Step, ...]

    def of(self, *kinds: Kind) -> list[Step]:
        return [step for step in self.steps if step.kind in kinds]

    @property
    def not_affine(self) -> list[Step]:
        """Known operations behind an activation that are not affine."""
        return [step for step in self.of(Kind.NOT_AFFINE, Kind.POOLING) if step.sources]


def _in_place(target: Any) -> Any:
    def change(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return change


class _Proxy(fx.Proxy):
    """fx's, but ``x += y`` stays in place in the graph: what else has the name of that tensor changes with it."""

    __iadd__, __isub__, __imul__, __itruediv__ = map(_in_place, _IN_PLACE)


_tracing = (
    threading.RLock()
)  # torch.fx replaces nn.Module.__call__, we isinstance: two threads would put back each other's


@contextmanager
def _proxies_are_tensors() -> Iterator[None]:
    """A forward that asks ``isinstance(x, Tensor)`` of a proxy is told what it would be told of data; torch's own code is not."""
    builtin = isinstance

    def asked(one: Any, kinds: Any, /) -> bool:
        if type(one) is not _Proxy or builtin(one, kinds):
            return builtin(one, kinds)
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        return not caller.startswith("torch.") and issubclass(Tensor, kinds)  # torch itself has is_tensor

    with mock.patch.object(builtins, "isinstance", asked):
        yield


class _Tracer(fx.Tracer):
    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.activation = activation

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The network and one tensor: what else its forward takes has its default."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, Neuron | QCFS | self.activation) or _known(m) is not None
        return leaf or super().is_leaf_module(m, module_qualified_name)


WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel, AveragedModel and what torch.compile returns.

    Raises:
        ValueError: it is no module, or TorchScript, of which there is no way back.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"the network must be a torch.nn.Module, got {network!r}")
    if isinstance(network, torch.jit.ScriptModule):
        raise ValueError(f"{network.original_name} is TorchScript; give the tools the module that it was made from")
    if isinstance(network, WRAPPERS):
        return unwrap(network.module)
    compiled = network._modules.get("_orig_mod")
    return network if compiled is None else unwrap(compiled)


def flow(network: nn.Module, activation: type[nn.Module] = QCFS) -> Flow:
    """What the network does in eval mode; its modules' modes are left as they were.

    Args:
        network: any module that torch.fx can trace, of one tensor, from one tensor. A forward that branches on ``type(x)``, catches
            errors or draws at random may do something else on data, which :func:`check_batch` finds.
        activation: a class that counts as an activation, besides ours.

    Raises:
        ValueError: torch.fx can't trace it (its forward branches on values, say), it takes or returns something else, has hooks
            itself, which a trace leaves out, or a module in it stays in train mode.
    """
    if network._forward_pre_hooks or network._forward_hooks:
        raise ValueError(
            f"{type(network).__name__} has hooks that may change what it computes; remove them (handle.remove()) first"
        )
    _check_forward(network, type(network).__name__)
    _check_unwrapped(network)
    tracer = _Tracer(activation)
    asked = [
        name
        for name, one in list(inspect.signature(network.forward).parameters.items())[1:]
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if asked:
        raise ValueError(f"{type(network).__name__} takes more than one input: {', '.join(asked)}")
    with evaluating(network), _attributes_kept(network):
        try:
            with _tracing, _proxies_are_tensors():
                graph = tracer.trace(network)
            for node in graph.nodes:  # each trace names them anew
                if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
                    node.meta["constant"] = getattr(network, str(node.target))
        except Exception as error:  # whatever a forward raises on a proxy
            raise ValueError(f"{type(network).__name__} can't be traced by torch.fx: {_cause(error)}") from error
    return Flow(graph, tuple(_steps(network, graph, activation)))


def runnable(network: nn.Module, found: Flow) -> fx.GraphModule:
    """What :func:`flow` found, to be run; the constants that a forward makes are in the graph alone."""
    made = {str(node.target): node.meta["constant"] for node in found.graph.nodes if "constant" in node.meta}
    vars(network).update(made)
    try:
        return fx.GraphModule(network, found.graph)
    finally:
        for name in made:
            del vars(network)[name]


def value_of(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    """What a parameter, buffer or constant in the graph is."""
    owner, _, name = str(node.target).rpartition(".")
    return node.meta["constant"] if "constant" in node.meta else getattr(modules[owner], name)


def _cause(error: Exception) -> str:
    """What went wrong in a trace, the line of a forward that did, and what to do."""
    passed = (str(Path(torch.__file__).parent), __file__)  # the tracer's own
    lines = [line for line in traceback.extract_tb(error.__traceback__) if not line.filename.startswith(passed)]
    at = f" ({lines[-1].filename}, line {lines[-1].lineno}: {lines[-1].line})" if lines else ""
    if not isinstance(error, fx.proxy.TraceError):
        return f"{error}{at}"
    why = str(error).partition(". ")[0]
    return f"{why}{at}; what depends on the data may not decide what is computed: take the branch or the loop out of the forward"


@torch.no_grad()
def check_batch(network: nn.Module, found: Flow, images: Tensor) -> None:
    """Run the network and what :func:`flow` found on a batch's first image.

    Raises:
        ValueError: images without values, that the network can't take, or on which its forward does something else than when it is
            traced.
    """
    if functional.symbolic(images):
        raise ValueError("images on the meta device or fake ones give no spikes")
    try:
        first = images[:, :1] if isinstance(network, MultiStep) and network.frames else images[:1]
        if not bool(first.isfinite().all()):
            return  # what is said of it depends on the backend
        with evaluating(network), _attributes_kept(network), use_backend("eager"):  # which fuses nothing, as a trace
            own, traced = network(first), runnable(network, found)(first)
    except (RuntimeError, IndexError) as error:
        why = str(error).split("\n")[0]
        raise ValueError(
            f"{type(network).__name__} takes no images of shape {list(images.shape)}, {images.dtype}: {why}"
        ) from error
    close = 1e-3 * float(own.nan_to_num(0, 0, 0).abs().max())
    if own.shape != traced.shape or not torch.allclose(own, traced, rtol=0, atol=close, equal_nan=True):
        raise ValueError(
            f"{type(network).__name__} computes something else than its trace by torch.fx: its forward asks for the type() "
            "of its data, catches errors or draws at random; it must take one way whatever it is given"
        )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode and nothing compiled (``network.compile()``) inside, every module as it was afterwards."""
    before = {module: (module.training, module._compiled_call_impl) for module in network.modules()}
    try:
        network.eval()
        for name, module in network.named_modules():
            if module.training:
                raise ValueError(
                    f"{name or 'the network'} ({type(module).__name__}) stays in train mode after eval(): its train() is not "
                    "torch's; remove it, or put torch's class in its place"
                )
            module._compiled_call_impl = None
        yield
    finally:
        for module, (training, compiled) in before.items():
            module.training, module._compiled_call_impl = training, compiled


_MODULES_OWN = vars(nn.Module()).keys()
_Container = list | dict | set | deque


def _inside(value: Any) -> Iterator[Any]:
    """A value, and what is in it if it is a container."""
    yield value
    if isinstance(value, _Container | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _inside(one)


def _attributes(network: nn.Module) -> Iterator[Any]:
    """Whatever modules keep as plain attributes."""
    for module in network.modules():
        for name, value in vars(module).items():
            if name not in _MODULES_OWN:
                yield from _inside(value)


@contextmanager
def _attributes_kept(network: nn.Module) -> Iterator[None]:
    """What a forward keeps (a feature, a counter) is a proxy or too high after a trace: put back what was there."""
    before = {module: (dict(vars(module)), dict(module._buffers)) for module in network.modules()}
    contents = [(value, copy.copy(value)) for value in _attributes(network) if isinstance(value, _Container)]
    with_values = [b for b in network.buffers() if not nn.parameter.is_lazy(b) and not functional.symbolic(b)]
    buffers = [(buffer, buffer.detach().clone()) for buffer in with_values]
    try:
        yield
    finally:
        for module, (attributes, registered) in before.items():
            own = vars(module)
            for name in own.keys() - _MODULES_OWN:
                del own[name]
            own.update({name: value for name, value in attributes.items() if name not in _MODULES_OWN})
            module._buffers.update(registered)
        for value, old in contents:
            value.clear()
            value.update(old) if isinstance(value, dict | set) else value.extend(old)
        with torch.no_grad():
            for buffer, was in buffers:
                if not torch.equal(buffer, was):
                    buffer.copy_(was)


def copied(network: nn.Module) -> nn.Module:
    """A deep copy, also of a network that keeps a feature of its last forward: without what that could be differentiated by.

    Raises:
        ValueError: something in it can't be copied.
    """
    kept = {
        id(one): one.detach().clone()
        for one in _attributes(network)
        if isinstance(one, torch.Tensor) and not one.is_leaf
    }
    try:
        return copy.deepcopy(network, kept)
    except Exception as error:  # whatever an attribute raises
        raise ValueError(f"{type(network).__name__} can't be copied: {error}") from error


def presynaptic(network: nn.Module) -> dict[str, list[str]]:
    """For each layer with weights, in order of execution, the activations whose output it sees (none: the image)."""
    found: dict[str, set[str]] = {}
    for step in flow(unwrap(network)).of(Kind.SYNAPSE):
        found.setdefault(str(step.node.target), set()).update(step.sources)
    return {name: sorted(sources) for name, sources in found.items()}


def non_affine(network: nn.Module) -> list[str]:
    """Operations between two neurons that are not affine, or not known: there the equalities of Theorems 4.4 and A.2 fail in
    general.

    Operations on the analogue current before the first neuron of a static image don't count: they see the same input at
    every step.
    """
    found = flow(unwrap(network))
    return [step.name for step in found.steps if step.sources and step.kind not in _AFFINE]


_AFFINE = (Kind.SYNAPSE, Kind.NORMALISATION, Kind.ACTIVATION, Kind.LINEAR, Kind.OFFSET)


def check_affine(found: Flow, what: str, inexact: bool) -> None:
    """ValueError that names what is not known and, unless ``inexact``, what is not affine behind an activation."""
    if unknown := [step.name for step in found.of(Kind.UNKNOWN)]:
        raise ValueError(
            f"{what}: {', '.join(unknown)} is not known to be applied step by step; replace it "
            "(axes counted from the end may be the rows: count them from the front; a factor or an offset may have no more axes "
            "than the data are known to have)"
        )
    if not inexact and (names := [step.name for step in found.not_affine]):
        raise ValueError(
            f"{what}: {', '.join(names)} is not affine, so the result would differ; replace it, or pass inexact=True"
        )


def check_values(network: nn.Module) -> None:
    """ValueError if weights have no values: lazy modules, meta device, fake tensors."""
    for name, module in network.named_modules():
        what = f"{name or 'the network'} ({type(module).__name__})"
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if nn.parameter.is_lazy(tensor):
                raise ValueError(f"{what} has no weights yet; run the network once")
            if tensor is not None and functional.symbolic(tensor):
                raise ValueError(f"{what} has no values (meta device or fake tensors); load its weights first")


def check_unchanged(network: nn.Module) -> None:
    """Refuse modules that are not what their class and parameters say.

    Raises:
        ValueError: weights without values (:func:`check_values`), parametrised or pruned, hooks, a replaced forward.
    """
    check_values(network)
    _check_unwrapped(network)
    for name, module in network.named_modules():
        what = f"{name or 'the network'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{what} is TorchScript; put the module that it was made from in its place")
        if nn.utils.parametrize.is_parametrized(module):
            raise ValueError(f"{what} is parametrised; call torch.nn.utils.parametrize.remove_parametrizations first")
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            pruning = isinstance(hook, BasePruningMethod)
            remove = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm"}
            remedy = "prune.remove" if pruning else remove.get(type(hook).__name__, "")
            remedy = f"call torch.nn.utils.{remedy}" if remedy else "remove them (handle.remove())"
            raise ValueError(f"{what} has hooks that may change what it computes ({_name(hook)}); {remedy} first")
        _check_forward(module, what)


def _check_unwrapped(network: nn.Module) -> None:
    """ValueError if a part of the network is wrapped in what a trace can't enter."""
    for name, module in network.named_modules():
        compiled = "_orig_mod" in module._modules
        if compiled or isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            what = f"{name or 'the network'} ({type(module).__name__})"
            raise ValueError(
                f"{what} {'is compiled' if compiled else 'wraps a part of the network'}; give the tools what is in it "
                f"(.{'_orig_mod' if compiled else 'module'}) in its place, and wrap the result"
            )


def _replaced(module: nn.Module) -> bool:
    """Whether a module has a forward of its own, which its class says nothing about."""
    own = vars(module).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def _check_forward(module: nn.Module, what: str) -> None:
    if _replaced(module):
        raise ValueError(f"{what} has a forward of its own that replaces its class's; remove it, or write a class")


def check_same(before: Flow, network: nn.Module, kind: type[nn.Module], what: str) -> None:
    """Refuse a network that did not take over the modules of another kind that were put in the place of its activations.

    Args:
        before: what the network did before.
        kind: class of the modules that were put in.
        what: the error's first words.

    Raises:
        ValueError: it still calls the old ones (kept in a list or a function), or does something else (it asks them for their
            levels, steps or class).
    """
    try:
        after = flow(network, kind)
    except ValueError as error:
        raise ValueError(
            f"{what}: the forward can't take another activation: it must call it by attribute (an nn.ModuleList for a list), "
            f"and read nothing of it ({error})"
        ) from error
    said = [_said(found) for found in (before, after)]
    if changed := [name for (name, *old), (_, *new) in zip(*said, strict=False) if old != new]:
        raise ValueError(
            f"{what}: {changed[0]} changes with the activation, whose levels, steps or class the forward reads, or is drawn at "
            "random; keep a number of your own"
        )
    replaced = sum(isinstance(step.module, kind) for step in after.steps)
    if len(said[0]) != len(said[1]) or replaced != len(before.of(Kind.ACTIVATION)):
        raise ValueError(f"{what}: the forward does something else with another activation")


def _said(found: Flow) -> list[tuple[Any, ...]]:
    """Name, operation and constants of each node; not how many steps our own functions of time are told."""
    places = {node: i for i, node in enumerate(found.graph.nodes)}
    said = []
    for node in found.graph.nodes:
        in_time = getattr(node.target, "__module__", "") == base.__name__
        arguments: Any = node.all_input_nodes if in_time else (node.args, node.kwargs)
        target = node.meta["constant"].tolist() if "constant" in node.meta else node.target
        said.append((_place(node, node.name), node.op, target, repr(fx.map_arg(arguments, lambda n: f"%{places[n]}"))))
    return said


def check_time(network: nn.Module) -> MultiStep:
    """The network, if it is known where its time axis starts.

    Raises:
        ValueError: it is no :class:`~lmht.networks.MultiStep`, or a neuron in it has another T or layout.
    """
    if not isinstance(network, MultiStep):
        raise ValueError(
            f"{type(network).__name__} does not say where the time axis starts; if it takes folded [T*N, ...], wrap it: "
            "lmht.networks.MultiStep(network, steps=T)"
        )
    base.check_neurons(network, network.steps)
    return network


def _known(module: nn.Module) -> type[nn.Module] | None:
    """The class of the table whose operation a module has: its own, or a base whose forward it inherits."""
    if _replaced(module):
        return None
    for kind in type(module).__mro__:
        if kind in _MODULES:
            return kind
        if _OWN & vars(kind).keys():
            return None
    return None


def _of_module(module: nn.Module, least: int) -> Kind:
    """The kind of a module on data of at least so many axes."""
    known = _known(module)
    if known is None:
        return Kind.UNKNOWN
    kind = _MODULES[known]
    if kind is Kind.NORMALISATION:
        assert isinstance(module, Norm)
        running = module.running_mean is not None and module.track_running_stats
        mixes = not isinstance(module, nn.modules.instancenorm._InstanceNorm)
        return kind if running else Kind.UNKNOWN if mixes else Kind.NOT_AFFINE
    if isinstance(module, nn.modules.padding._ConstantPadNd):
        if len(module.padding) // 2 >= least:
            return Kind.UNKNOWN  # it may reach the rows
        if module.value != 0:
            return Kind.OFFSET
    moved = known in _MODULE_AXES and not _keeps_time(getattr(module, _MODULE_AXES[known]), least)
    return Kind.UNKNOWN if moved or getattr(module, "return_indices", False) else kind


def _keeps_time(axes: Any, least: int) -> bool:
    """Whether axes leave the first one alone, of data that have at least so many."""
    if isinstance(axes, slice):  # of a shape
        axes = axes.start if axes.step in (None, 1) else None
    axes = axes if isinstance(axes, tuple | list) else (axes,)
    return bool(axes) and all(isinstance(axis, int) and (axis > 0 or -least < axis < 0) for axis in axes)


def operands(node: fx.Node) -> list[Any]:
    """The first and the second argument of a sum, by place or by name."""
    return [*node.args, *(node.kwargs[name] for name in ("input", "other") if name in node.kwargs)]


def works_in_place(node: fx.Node) -> bool:
    """Whether a call changes its first argument, torch's methods by their name."""
    target = called(node)
    name = target if isinstance(target, str) else ""
    return target in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def aliases(value: fx.Node, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """What may share its memory with a value: what it is a view of, and other views of that."""

    def is_view(node: fx.Node) -> bool:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        passes = isinstance(module, nn.Identity | nn.Flatten | nn.Unflatten | nn.modules.dropout._DropoutNd)
        return passes or called(node) in (*_VIEWS, *_DROPOUT)

    while is_view(value):
        value = value.all_input_nodes[0]
    found, ahead = {value}, [value]
    while ahead:
        views = {user for user in ahead.pop().users if is_view(user)} - found
        found |= views
        ahead += views
    return found


def _of_call(
    node: fx.Node, data: list[fx.Node], counted: set[fx.Node], modules: dict[str, nn.Module], least: dict[fx.Node, int]
) -> Kind:
    """The kind of a function or method call on data; ``counted`` depend on how many rows there are, ``least`` as in
    :func:`~lmht.axes.least_axes`."""
    target, args, kwargs = node.target, node.args, node.kwargs
    on_data = [a in data for a in args]
    if target in _IN_PLACE and isinstance(args[0], fx.Node):
        others = [other for other in aliases(args[0], modules) if other < node]
        if any(later > node for other in others for later in other.users):
            return Kind.UNKNOWN  # it changes what another operation sees, too
    if target in ADDING:
        linear = all(a in data or (type(a) is int and a == 0) for a in operands(node))
        return Kind.LINEAR if linear and kwargs.keys() <= {"alpha", "input", "other"} else Kind.OFFSET
    if target in _MULTIPLYING and not kwargs:
        return Kind.NOT_AFFINE if all(on_data) else Kind.LINEAR
    if target in DIVIDING and not kwargs:
        return Kind.LINEAR if on_data == [True, False] else Kind.NOT_AFFINE
    if target in _PRODUCTS:
        return Kind.NOT_AFFINE if set(node.all_input_nodes) <= set(data) else Kind.UNKNOWN
    if target in _RESHAPING:
        shape = shape_of(node)
        first = shape[0] if isinstance(shape, tuple | list) and shape else shape
        row_by_row = _is_rows(first) if isinstance(first, fx.Node) else type(first) is int and first < 0
        if isinstance(shape, tuple | list) and not counted.isdisjoint(shape[1:]):
            return Kind.UNKNOWN
        return Kind.LINEAR if row_by_row else Kind.UNKNOWN
    if target in _LINEAR:
        return Kind.LINEAR
    if target in _POOLING:
        return Kind.UNKNOWN if kwargs.get("return_indices") else Kind.POOLING
    if target in _NOT_AFFINE:
        return Kind.NOT_AFFINE
    if target in _DROPOUT:
        training = kwargs.get("training", args[2] if len(args) > 2 else True)
        return Kind.LINEAR if training is False else Kind.UNKNOWN
    if target is F.pad:
        pad = kwargs.get("pad", args[1] if len(args) > 1 else None)
        if not isinstance(pad, tuple | list) or len(pad) // 2 >= least[data[0]]:  # it may reach the rows
            return Kind.UNKNOWN
        return Kind.OFFSET if kwargs.get("value", args[3] if len(args) > 3 else None) else Kind.LINEAR
    if target in _AXES:
        axes = kwargs.get("dim", kwargs.get("start_dim", args[_AXES[target]] if len(args) > _AXES[target] else 0))
        if not _keeps_time(axes, least[data[0]] + (target in (torch.stack, torch.unsqueeze, "unsqueeze"))):
            return Kind.UNKNOWN
        beside = [other for other in node.all_input_nodes if other not in data]  # a class token
        if target in (torch.cat, torch.stack) and beside:
            return Kind.OFFSET if all(_same_in_rows(other, modules) for other in beside) else Kind.UNKNOWN
        return Kind.NOT_AFFINE if target in _SOFTMAX else Kind.LINEAR
    if target in (torch.transpose, "transpose"):
        return Kind.LINEAR if len(args) == 3 and _keeps_time(args[1:], least[data[0]]) else Kind.UNKNOWN
    if target in (torch.permute, "permute"):
        order = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
        return Kind.LINEAR if order and order[0] == 0 else Kind.UNKNOWN
    if target is operator.getitem and isinstance(args[0], fx.Node):
        whole = isinstance(args[1], tuple) and args[1][:1] in ((), (slice(None),)) and node.all_input_nodes == [args[0]]
        return Kind.LINEAR if whole or (called(args[0]) in _PARTS and isinstance(args[1], int)) else Kind.UNKNOWN
    return Kind.UNKNOWN


def _steps(network: nn.Module, graph: fx.Graph, activation: type[nn.Module]) -> Iterator[Step]:
    modules = dict(network.named_modules(remove_duplicate=False))
    all_called = [modules[str(node.target)] for node in graph.nodes if node.op == "call_module"]
    ends: Any = Neuron | QCFS | activation
    if not any(isinstance(module, ends) for module in all_called):
        ends = nn.ReLU  # an ANN's layers end there
    sources: dict[fx.Node, frozenset[str]] = {}
    counted: set[fx.Node] = set()  # what depends on how many rows there are
    own = {node: value_of(node, modules) for node in graph.nodes if node.op == "get_attr"}
    least = least_axes(graph, modules, {node: one.dim() for node, one in own.items() if isinstance(one, Tensor)})
    for node in graph.nodes:
        if node.op == "placeholder":
            sources[node] = frozenset()
            continue
        inputs = [n for n in node.all_input_nodes if n in sources]
        if is_number(node) or not inputs:
            if _counts_rows(node, counted, least):
                counted.add(node)
            module = modules[str(node.target)] if node.op == "call_module" else None
            if isinstance(module, ends):
                raise ValueError(f"{node.target} ({type(module).__name__}) is applied to something else than data")
            if called(node) is getattr and inputs and node.args[1] not in ("shape", "dtype", "device", "ndim"):
                sources[node] = frozenset[str]().union(*(sources[n] for n in inputs))
                yield Step(node, _place(node, f".{node.args[1]}"), Kind.UNKNOWN, None, tuple(inputs), sources[node])
            continue
        before = frozenset[str]().union(*(sources[n] for n in inputs))
        if node.op == "output":
            if node.args != (inputs[0],):
                raise ValueError(f"{type(network).__name__} must return one tensor, returns {node.args[0]}")
            continue
        module = modules[str(node.target)] if node.op == "call_module" else None
        sources[node] = before
        if module is None:
            kind = _of_call(node, inputs, counted, modules, least)
            if node.target not in _MAY_COUNT and not counted.isdisjoint(node.all_input_nodes):
                kind = Kind.UNKNOWN
            others = [least[n] for n in node.all_input_nodes if n not in inputs]
            if node.target in ADDING + SCALING and max(others, default=0) > least[inputs[0]]:
                kind = Kind.UNKNOWN  # an axis may come before the rows
            yield Step(node, _place(node, _name(node.target)), kind, None, tuple(inputs), before)
            continue
        name = f"{node.target} ({type(module).__name__})"
        if isinstance(module, ends):
            kind, sources[node] = Kind.ACTIVATION, frozenset({str(node.target)})
        else:
            kind = _of_module(module, least[inputs[0]])
        if len(node.all_input_nodes) != 1 or len(node.args) + len(node.kwargs) != 1:
            kind = Kind.UNKNOWN  # called with more than its current
        yield Step(node, name, kind, module, tuple(inputs), before)


def _counts_rows(node: fx.Node, counted: set[fx.Node], least: dict[fx.Node, int]) -> bool:
    """Whether what is made of data's shape may depend on the length of their first axis."""
    target = called(node)
    if target is getattr:
        return str(node.args[1]) == "shape"
    if target is operator.getitem and node.args[0] in counted:
        shape = node.args[0]
        assert isinstance(shape, fx.Node)
        return not (is_number(shape) and _keeps_time(node.args[1], least[shape.all_input_nodes[0]]))
    if target == "size" and len(node.args) == 2:
        return not _keeps_time(node.args[1], least[node.all_input_nodes[0]])
    return target in ("size", "numel", len) or not counted.isdisjoint(node.all_input_nodes)


def _is_rows(first: Any) -> bool:
    """Whether a reshape's first length, or its whole shape, begins with as many rows as there are, or a multiple."""
    if not isinstance(first, fx.Node):
        return False
    target, args = called(first), list(first.args)
    if target is operator.getitem and isinstance(args[0], fx.Node) and is_number(args[0]):
        if isinstance(args[1], slice):
            return args[1].start in (None, 0) and args[1].step in (None, 1)
        return type(args[1]) is int and args[1] == 0
    if target is operator.add:  # of shapes
        return _is_rows(args[0])
    if target is operator.mul:  # of lengths
        return any(map(_is_rows, args))
    asked = {getattr: (["shape"],), "size": ([], [0])}.get(target, ())
    return target is len or args[1:] in asked


def _same_in_rows(other: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether what stands beside data is one parameter for every row: used as it is, expanded or repeated."""
    if other.op == "get_attr":
        return True
    of, *rest = other.all_input_nodes
    if called(other) == "repeat":
        return of.op == "get_attr" and len(value_of(of, modules)) == 1
    return (called(other) == "expand" or (called(other) is operator.getitem and not rest)) and _same_in_rows(
        of, modules
    )


def called(node: fx.Node) -> Any:
    """The function, or the name of the method, that a node calls; None for a module or parameter, whatever it is called."""
    return node.target if node.op in ("call_function", "call_method") else None


def _place(node: fx.Node, name: str) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    where = list(stack)[-1] if stack else ""
    return f"{name} in {where}" if where else name


def _name(what: Any) -> str:
    return what if isinstance(what, str) else getattr(what, "__name__", type(what).__name__)
