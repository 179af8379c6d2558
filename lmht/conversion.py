"""Hybrid training: a trained QCFS network becomes an IF or an LM-HT network (Theorem 4.4, Algorithm 1)."""

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from lmht.graph import Synapse, check_network
from lmht.networks.base import Network
from lmht.neurons import IF, LMHT, QCFS
from lmht.tgim import TGIM

Start = Literal["exact", "algorithm1"]


def to_if(network: Network, steps: int) -> Network:
    """QCFS network -> IF network: ``theta = vartheta``, ``v(0) = theta / 2``, over T steps (QCFS conversion, Table 4)."""
    return _convert(network, steps, lambda scale: IF(steps, theta=scale, v0=scale / 2))


def to_lmht(
    network: Network,
    levels: int,
    steps: int,
    *,
    start: Start = "exact",
    tgim: Callable[[int], TGIM] | None = None,
) -> Network:
    """QCFS network -> LM-HT network, ready for fine-tuning, with ``Omega = 1/T``, ``lambda = 1``, ``v(0) = theta / 2``.

    Args:
        network: trained network with :class:`~lmht.neurons.QCFS` activations; it is not changed.
        levels: ``L``.
        steps: ``T``.
        start: ``exact`` takes ``theta = vartheta / L`` and scales nothing: at ``L * T = Tq`` the result is the quantised ANN
            itself, layer by layer, before any fine-tuning (a network whose operations between neurons are affine).
            ``algorithm1`` is the paper's Algorithm 1 taken literally: ``theta = vartheta``, the first layer's current times
            ``L``. Its biases and running means further in are not scaled, so it is not the initialisation of Theorem 4.4.
        tgim: makes each layer's T-GIM from T; default the paper's bounded sigmoid, which starts uniform.

    Raises:
        ValueError: unknown ``start``, a network without QCFS activations, a scale that is not positive, or a network that
            :func:`lmht.graph.check_network` refuses.
    """
    if start not in ("exact", "algorithm1"):
        raise ValueError(f"start must be 'exact' or 'algorithm1', got {start!r}")
    divisor = levels if start == "exact" else 1

    def neuron(scale: float) -> LMHT:
        theta = scale / divisor
        return LMHT(levels, steps, theta=theta, v0=theta / 2, tgim=None if tgim is None else tgim(steps))

    converted = _convert(network, steps, neuron)
    if start == "algorithm1":
        scale_current(converted.stem, levels)
    return converted


def replace_modules(network: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> int:
    """Replace every submodule of a type in place, keep device and dtype of the network, and return how many there were.

    A submodule that has several names stays one submodule with these names.
    """
    like = next(network.parameters())
    found: list[tuple[str, nn.Module]] = [
        (n, m) for n, m in network.named_modules(remove_duplicate=False) if isinstance(m, kind)
    ]
    made = {module: make(module).to(like.device, like.dtype).train(network.training) for _, module in found}
    for name, module in found:
        network.set_submodule(name, made[module])
    return len(made)


@torch.no_grad()
def scale_current(stem: nn.Module, factor: float) -> None:
    """Multiply the current that a stem delivers: weight and bias of its last affine layer."""
    last = [m for m in stem.modules() if isinstance(m, Synapse | nn.BatchNorm2d)][-1]
    last.weight *= factor
    if last.bias is not None:
        last.bias *= factor


def _convert(network: Network, steps: int, neuron: Callable[[float], nn.Module]) -> Network:
    check_network(network)
    converted = copy.deepcopy(network)
    converted.steps = steps
    if not replace_modules(converted, QCFS, lambda activation: neuron(_scale(activation))):
        raise ValueError("the network has no QCFS activation to convert; train it with activation=lambda: QCFS(levels)")
    return converted


def _scale(activation: nn.Module) -> float:
    assert isinstance(activation, QCFS)
    scale = float(activation.scale.detach())
    if not scale > 0:
        raise ValueError(f"a QCFS scale is {scale}, not > 0; a threshold can't be made of it: train again")
    return scale
