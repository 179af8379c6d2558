"""Which neuron feeds which layer: a network's data flow, read off by torch.fx."""

from collections.abc import Iterator

from torch import fx, nn

from lmht.networks.base import Network
from lmht.neurons import QCFS, Neuron

Synapse = nn.Conv2d | nn.Linear
_AFFINE = (
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Identity,
)
_AFFINE_CALLS = {"add", "mean", "flatten", "unflatten", "transpose", "repeat_in_time", "checked_images"}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Neuron | QCFS) or super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module) -> tuple[fx.Graph, dict[str, nn.Module]]:
    """The network's graph, activations as leaves, and its modules by name."""
    return _Tracer().trace(network), dict(network.named_modules())


def check_network(network: nn.Module) -> None:
    """Refuse what the graph tools would get wrong in silence.

    Raises:
        ValueError: no :class:`~lmht.networks.Network` (only that knows where time starts), or pruned or parametrised weights.
    """
    if not isinstance(network, Network):
        raise ValueError(
            f"a lmht.networks.Network is needed, got {type(network).__name__}: nothing else says where the time axis starts; "
            "pass a wrapper's inner network (.module, ._orig_mod), or build the model as Network(stem, body, head)"
        )
    for name, module in network.named_modules():
        if nn.utils.parametrize.is_parametrized(module):
            raise ValueError(f"{name} is parametrised; call torch.nn.utils.parametrize.remove_parametrizations first")
        if any(key.endswith(("_orig", "_v")) for key in module._parameters) or hasattr(module, "weight_u"):
            raise ValueError(
                f"{name} has pruned or reparametrised weights; call torch.nn.utils.prune.remove (or remove_weight_norm, "
                "remove_spectral_norm) first"
            )


def is_activation(module: nn.Module) -> bool:
    """Whether a module is where one layer ends: a spiking neuron, QCFS, or an ANN's ReLU."""
    return isinstance(module, Neuron | QCFS | nn.ReLU)


def presynaptic(network: nn.Module) -> dict[str, list[str]]:
    """For each convolution and linear layer, in order of execution, the activations whose output it sees (none: the image)."""
    graph, modules = trace(network)
    return {
        str(node.target): sorted({str(n.target) for n in _upstream(node, modules) if n.op == "call_module"})
        for node in graph.nodes
        if node.op == "call_module" and isinstance(modules[str(node.target)], Synapse)
    }


def non_affine(network: nn.Module) -> list[str]:
    """Operations between two neurons that are not affine: there the equalities of Theorems 4.4 and A.2 fail in general.

    Operations on the analogue current before the first neuron of a static image don't count: they see the same input at
    every step.
    """
    graph, modules = trace(network)
    found = []
    for node in graph.nodes:
        if node.op == "call_module":
            module = modules[str(node.target)]
            if is_activation(module) or isinstance(module, _AFFINE):
                continue
            name = f"{node.target} ({type(module).__name__})"
        elif node.op in ("call_function", "call_method"):
            name = node.target if isinstance(node.target, str) else node.target.__name__
            scalar = name in ("mul", "truediv") and not all(isinstance(a, fx.Node) for a in node.args)
            if name in _AFFINE_CALLS or scalar:
                continue
        else:
            continue
        if any(n.op == "call_module" for n in _upstream(node, modules)):
            found.append(name)
    return found


def _upstream(node: fx.Node, modules: dict[str, nn.Module]) -> Iterator[fx.Node]:
    """The nearest activations before ``node`` on every path, or the input."""
    for source in node.all_input_nodes:
        if source.op == "placeholder" or (source.op == "call_module" and is_activation(modules[str(source.target)])):
            yield source
        else:
            yield from _upstream(source, modules)
