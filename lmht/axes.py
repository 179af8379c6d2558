"""How many axes data in a traced network have at least: whether an axis counted from the end can be the rows, ``[T*N, ...]``."""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

_RESHAPING = (torch.reshape, "reshape", "view")
_REDUCING = (torch.mean, torch.sum, "mean", "sum")
_CHANGED_BY_MODULE = (nn.Flatten, nn.Unflatten, nn.Fold, nn.Unfold)
_CHANGED_BY_CALL = (
    *(*_RESHAPING, *_REDUCING, torch.flatten, "flatten", torch.unflatten, "unflatten", F.fold, F.unfold, torch.stack),
    *(torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze", operator.getitem, "expand", "repeat"),
)


def is_number(node: fx.Node) -> bool:
    """Whether it asks for a number or a shape, not for data."""
    return node.op in ("call_function", "call_method") and node.target in (getattr, "size", "dim", "numel", len)


def shape_of(node: fx.Node) -> Any:
    """The shape that a reshape is given, as it is written: several numbers, a tuple, or another tensor's."""
    if "shape" in node.kwargs:
        return node.kwargs["shape"]
    return node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list | fx.Node) else node.args[1:]


def least_axes(graph: fx.Graph, modules: dict[str, nn.Module], own: dict[fx.Node, int]) -> dict[fx.Node, int]:
    """Of each node; the images have rows and something in them, ``own`` are those of parameters and constants. A convolution or
    BatchNorm2d says it of what comes before it, too."""
    least = dict(own)
    for _ in range(2):
        for node in graph.nodes:
            module = modules[str(node.target)] if node.op == "call_module" else None
            of_inputs = max(
                [own.get(node, 0), 2 * (node.op == "placeholder"), *(least[n] for n in node.all_input_nodes)]
            )
            known = 0 if is_number(node) else of_inputs
            if axes := _takes(module):
                known, before = axes, node.all_input_nodes[0]
                while least[before] < known:
                    least[before] = known
                    if len(before.all_input_nodes) != 1 or _changes(before, modules):
                        break  # of several inputs one may have been broadcast
                    before = before.all_input_nodes[0]
            elif _changes(node, modules):
                known = _changed(node, module, least)
            least[node] = max(known, least.get(node, 0))
    return least


def _takes(module: nn.Module | None) -> int:
    """How many axes a module's input must have, 0 if that is not fixed."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return len(module.kernel_size) + 2
    return 4 * isinstance(module, nn.BatchNorm2d) + 5 * isinstance(module, nn.BatchNorm3d)


def _changes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _CHANGED_BY_MODULE)
    return node.op in ("call_function", "call_method") and node.target in _CHANGED_BY_CALL


def _changed(node: fx.Node, module: nn.Module | None, least: dict[fx.Node, int]) -> int:
    """After an operation that adds or removes axes."""
    args, kwargs = node.args, node.kwargs
    before = max([least[n] for n in node.all_input_nodes], default=0)
    if isinstance(module, nn.Fold | nn.Unfold) or node.target in (F.fold, F.unfold):
        return 3
    if isinstance(module, nn.Flatten):
        return _flattened(module.start_dim, before)
    if isinstance(module, nn.Unflatten) or node.target in (torch.unflatten, "unflatten", torch.stack):
        return before + (node.target is torch.stack)
    if node.target in _RESHAPING:
        shape = shape_of(node)
        return len(shape) if isinstance(shape, tuple | list) else 1
    dim = kwargs.get("dim", kwargs.get("start_dim", args[1] if len(args) > 1 else None))
    if node.target in (torch.flatten, "flatten"):
        return _flattened(0 if dim is None else dim, before)
    if node.target in (torch.unsqueeze, "unsqueeze"):
        return before + 1
    if node.target is operator.getitem:
        if isinstance(args[0], fx.Node) and args[0].target in (torch.chunk, torch.split, "chunk", "split"):
            return before  # a part
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return max(before - sum(isinstance(one, int | fx.Node) for one in index) + index.count(None), 0)
    if node.target in ("expand", "repeat"):
        shape = args[1:]
        return max(before, len(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else len(shape))
    if node.target in _REDUCING and kwargs.get("keepdim", args[2] if len(args) > 2 else False):
        return before
    return max(before - (len(dim) if isinstance(dim, tuple | list) else before if dim is None else 1), 0)


def _flattened(start: Any, before: int) -> int:
    if not isinstance(start, int):
        return 1
    return start + 1 if start >= 0 else max(before + start + 1, 1)
