"""Hybrid training: a trained QCFS network becomes an IF or an LM-HT network (Theorem 4.4, Algorithm 1)."""

import copy
import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmht import functional
from lmht.graph import Kind, Step, check_affine, check_same, check_unchanged, copied, flow, unwrap
from lmht.networks.base import MultiStep, Network, check_neurons
from lmht.neurons import IF, LMHT, QCFS, Neuron
from lmht.tgim import TGIM

Start = Literal["exact", "algorithm1"]


def to_if(network: nn.Module, steps: int, *, activation: type[nn.Module] = QCFS, scale: str = "scale") -> MultiStep:
    """QCFS network -> IF network: ``theta = vartheta``, ``v(0) = theta / 2``, over T steps (QCFS conversion, Table 4).

    Close to the ANN in the limit of many steps; arguments, result and errors as :func:`to_lmht` with ``inexact=True``.
    """

    def neuron(vartheta: float) -> IF:
        return IF(steps, theta=vartheta, v0=vartheta / 2)

    return _convert(network, steps, neuron, activation, scale, inexact=True)


def to_lmht(
    network: nn.Module,
    levels: int,
    steps: int,
    *,
    start: Start = "exact",
    tgim: Callable[[int], TGIM] | None = None,
    activation: type[nn.Module] = QCFS,
    scale: str = "scale",
    inexact: bool = False,
) -> MultiStep:
    """QCFS network -> LM-HT network, ready for fine-tuning, with ``Omega = 1/T``, ``lambda = 1``, ``v(0) = theta / 2``.

    Args:
        network: trained network with QCFS activations, any module that torch.fx can trace, from one tensor ``[N, ...]`` to another;
            it is not changed. What DataParallel, DistributedDataParallel, AveragedModel or torch.compile wrapped is taken out.
        levels: ``L``.
        steps: ``T``.
        start: ``exact`` takes ``theta = vartheta / L`` and scales nothing: at ``L * T = Tq`` the result is the quantised ANN
            itself in eval mode, layer by layer, before any fine-tuning (a network whose operations between neurons are affine).
            Where an activation has another ``Tq`` it is near that, and meant to be fine-tuned.
            ``algorithm1`` is the paper's Algorithm 1 taken literally: ``theta = vartheta``, the first layer's current times
            ``L``. Its biases and running means further in are not scaled, so it is not the initialisation of Theorem 4.4.
        tgim: makes each layer's T-GIM from T; default the bounded sigmoid, which starts uniform.
        activation: class of the network's activations, :class:`~lmht.neurons.QCFS` or somebody else's that computes the same
            (which is checked, value by value).
        scale: the attribute that holds an activation's ``vartheta``.
        inexact: convert also where an operation between neurons is not affine (a max-pool): equal up to the first of them.

    Returns:
        A :class:`~lmht.networks.Network` if it was one, else a :class:`~lmht.networks.MultiStep` around its copy.

    Raises:
        TypeError: ``activation`` is no class of modules.
        ValueError: unknown ``start``, a network without such activations, a scale that is not positive, an operation that
            :mod:`lmht.graph` does not know or, unless ``inexact``, that is not affine, or what
            :func:`lmht.graph.check_unchanged` refuses.
    """
    if start not in ("exact", "algorithm1"):
        raise ValueError(f"start must be 'exact' or 'algorithm1', got {start!r}")
    functional.check_levels(levels)
    divisor = levels if start == "exact" else 1

    def neuron(vartheta: float) -> LMHT:
        theta = vartheta / divisor
        return LMHT(levels, steps, theta=theta, v0=theta / 2, tgim=None if tgim is None else tgim(steps))

    converted = _convert(network, steps, neuron, activation, scale, inexact)
    if start == "algorithm1":
        if not isinstance(converted, Network):
            raise ValueError("start='algorithm1' scales a stem, which only a lmht.networks.Network has")
        scale_current(converted, levels)
    return converted


def replace_modules(network: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> int:
    """Replace every submodule of a type in place, keep its device and dtype (the network's, if it has no parameters), and return
    how many there were.

    A submodule that has several names stays one submodule with these names.
    """
    own: list[torch.Tensor] = [p for p in network.parameters() if p.is_floating_point()] or [torch.empty(())]
    dtype, device = functools.reduce(torch.promote_types, (p.dtype for p in own)), own[0].device

    def place(module: nn.Module) -> dict[str, Any]:
        like = next((p for p in module.parameters() if p.is_floating_point()), None)
        return {"device": device, "dtype": dtype} if like is None else {"device": like.device, "dtype": like.dtype}

    found: list[tuple[str, nn.Module]] = [
        (n, m) for n, m in network.named_modules(remove_duplicate=False) if isinstance(m, kind)
    ]
    made = {module: make(module).to(**place(module)).train(module.training) for _, module in found}
    for name, module in found:
        network.set_submodule(name, made[module])
    return len(made)


def _passes_a_factor(step: Step) -> bool:
    return step.kind in (Kind.LINEAR, Kind.POOLING) or isinstance(step.module, nn.ReLU)


@torch.no_grad()
def scale_current(network: Network, factor: float) -> None:
    """Multiply the current that a network's stem delivers: weight and bias of its last affine layer.

    Raises:
        ValueError: no layer of the stem is the last one that all of the current passes through, it has no weight, or shares it.
    """
    found = flow(nn.Sequential(network.stem))  # a stem that is one layer would be traced into it
    steps = {step.node: step for step in found.steps}
    node = next(node for node in found.graph.nodes if node.op == "output").args[0]
    while (step := steps.get(node)) and len(step.inputs) == 1 and _passes_a_factor(step):
        node = step.inputs[0]
    last: Any = step.module if step and step.kind in (Kind.SYNAPSE, Kind.NORMALISATION) else None
    if last is None or last.weight is None or sum(other.module is last for other in found.steps) > 1:
        raise ValueError("the stem does not end in one affine layer with a weight to scale its current by")
    own = [tensor for tensor in (last.weight, last.bias) if tensor is not None]
    for name, module in network.named_modules():
        shared = [tensor for tensor in module._parameters.values() if any(tensor is one for one in own)]
        if module is not last and shared:
            raise ValueError(f"{name} shares a weight with the layer that scales the stem's current; untie it")
    last.weight *= factor
    if last.bias is not None:
        last.bias *= factor


def _convert(
    network: nn.Module,
    steps: int,
    neuron: Callable[[float], nn.Module],
    activation: type[nn.Module],
    scale: str,
    inexact: bool,
) -> MultiStep:
    if not (isinstance(activation, type) and issubclass(activation, nn.Module)):
        raise TypeError(f"activation= takes a class of modules, QCFS or your own, got {activation!r}")
    network = unwrap(network)
    check_unchanged(network)
    if isinstance(network, MultiStep) and network.frames:
        if network.steps != steps:
            raise ValueError(
                f"the network takes {network.steps} event frames; convert it to as many steps, not {steps}"
            )
        if not inexact:
            raise ValueError(
                "no exact conversion: event frames change from step to step, and only a current uniform in time is quantised as "
                "the ANN quantises it; pass inexact=True"
            )
    found = flow(network, activation)
    ends = [step for step in found.steps if isinstance(step.module, activation)]
    if not ends:
        raise ValueError(
            f"the network has no {activation.__name__} activation to convert; train it with activation=lambda: QCFS(levels), "
            "or name your own class: activation=, scale="
        )
    check_affine(found, "no exact conversion", inexact)
    others = [step.name for step in found.of(Kind.ACTIVATION) if step not in ends]
    if others:
        raise ValueError(
            f"{', '.join(others)} is another activation than {activation.__name__}; convert a network of one"
        )
    converted = copied(network)
    replace_modules(converted, activation, lambda module: neuron(_scale(module, scale)))
    if isinstance(converted, MultiStep):
        converted.steps = steps
        check_neurons(converted, steps)
        result = converted
    else:
        result = MultiStep(converted, steps)
        result.training = converted.training  # train() would change the modes of modules inside
    check_same(found, converted, Neuron, "no conversion")
    return result


def _scale(activation: nn.Module, name: str) -> float:
    value: Any = getattr(activation, name, None)
    if not isinstance(value, int | float | torch.Tensor) or torch.as_tensor(value).numel() != 1:
        raise ValueError(
            f"{type(activation).__name__}.{name} is not one number; name the attribute that holds it: scale="
        )
    scale = float(torch.as_tensor(value).detach())
    if not scale > 0:
        raise ValueError(f"a QCFS scale is {scale}, not > 0; a threshold can't be made of it: train again")
    kind = type(activation)
    if kind.forward is not QCFS.forward or kind.__call__ is not nn.Module.__call__:
        _check_qcfs(activation, scale)
    return scale


@torch.no_grad()
def _check_qcfs(activation: nn.Module, scale: float) -> None:
    """ValueError unless an activation is QCFS with this scale, by its values in, around and far from [0, scale], ties left out, and
    on data of any number of axes."""
    around, far = (
        torch.linspace(-2.5013, 3.4987, 11996, dtype=torch.float64),
        torch.tensor([-1e3, -30, 30, 1e3]).double(),
    )
    x = scale * torch.cat([around, far])
    like = next((tensor for tensor in (*activation.parameters(), *activation.buffers())), x)
    own = copy.deepcopy(activation).double().eval()
    for shape in ((12000,), (20, 600), (20, 10, 60), (20, 6, 10, 10)):
        _check_values(type(activation).__name__, own, x.reshape(shape).to(like.device), scale)


def _check_values(name: str, activation: nn.Module, x: Tensor, scale: float) -> None:
    try:
        y = activation(x)
    except RuntimeError as error:
        raise ValueError(f"{name} is not elementwise with one scale: {error}") from error
    if y.numel() != x.numel():
        raise ValueError(f"{name} gives {y.numel()} values for {x.numel()}; it must be elementwise")
    x, y = x.flatten(), y.flatten().to(x)
    levels = max(1, len((y / scale * 2**16).round().unique()) - 1)
    expected = functional.qcfs(x, levels=levels, scale=scale)
    clear = (x * levels / scale - 0.5).sub((x * levels / scale - 0.5).round()).abs() > 1e-4
    wrong = clear & ((y - expected).abs() > 1e-5 * scale)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name} is not QCFS (Eq. 4) with scale {scale:g} and {levels} levels: at {float(x[at]):g} it "
            f"gives {float(y[at]):g}, not {float(expected[at]):g}; is scale= the right attribute?"
        )
