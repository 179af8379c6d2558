"""A cell's network: the architecture, and the activation that its neuron spec names."""

import os
from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from benchmarks.neurons import KINDS
from benchmarks.spec import Cell, NeuronSpec
from lmht.conversion import to_lmht
from lmht.networks import MultiStep, Network, build


def activation(spec: NeuronSpec, qcfs_scale: float) -> Callable[[], nn.Module]:
    """Activation factory. Direct training: ``theta = 2/L`` for L > 1 and 1 for L = 1, ``v(0) = 0``, as in the released code."""
    kind = KINDS[spec.kind]
    theta = 2 / spec.levels if spec.levels > 1 else 1.0
    return lambda: kind.make(spec.levels, spec.steps, theta if kind.spiking else qcfs_scale)


class Shape(Protocol):
    """What a network needs to know of its data."""

    @property
    def classes(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def frames(self) -> bool: ...


def starting_network(cell: Cell, info: Shape) -> MultiStep:
    """The cell's network as its training begins, but for the weights: a fine-tuned cell's is converted."""
    network = network_of(cell, info)
    return to_lmht(network, cell.neuron.levels, cell.neuron.steps, start=cell.start) if cell.start else network


def network_of(cell: Cell, info: Shape) -> Network:
    """The cell's network before training, a fine-tuned cell's before its conversion."""
    origin = cell.ann or cell
    return build(
        cell.architecture,
        activation(origin.neuron, cell.qcfs_scale),
        classes=info.classes,
        steps=origin.neuron.steps,
        in_channels=info.in_channels,
        frames=info.frames,
        **cell.network,
    )


def full_float32() -> None:
    """Have this process compute float32 in float32 on a GPU, too.

    cuDNN's convolutions take TF32 unless told otherwise, whose factors have 10 bits: more sums would fall beyond a threshold.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def deterministic() -> None:
    """Have this process take no algorithm whose result differs between two runs, as far as torch knows of any.

    An operation that has no other on its device raises torch's RuntimeError, which names it. On a CPU this changes no bit of a
    training: it takes none.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS adds in one order
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
