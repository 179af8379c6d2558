"""Reparameterisation: an LM-HT network over T steps as a one-level network over L*T steps (Theorem A.2)."""

import copy

import torch
from torch import Tensor, nn

from lmht.conversion import replace_modules
from lmht.graph import Synapse, presynaptic
from lmht.networks.base import Network
from lmht.neurons import LMHT, MHT, Neuron
from lmht.tgim import FixedTGIM


def expand_tgim(omega: Tensor, leak: Tensor, levels: int) -> FixedTGIM:
    """``omega_hat = omega / L`` on every L x L block of an LT x LT matrix; leak lambda between windows, 1 inside one.

    Args:
        omega: ``[T, T]``. leak: ``[]`` or ``[T]``. levels: ``L``.
    """
    steps = len(omega)
    omega_hat = torch.kron(omega, torch.full((levels, levels), 1 / levels, dtype=omega.dtype, device=omega.device))
    leak_hat = omega.new_ones(steps, levels)
    leak_hat[:, 0] = leak
    return FixedTGIM(omega_hat, leak_hat.flatten())


def window_tgim(neuron: Neuron) -> tuple[Tensor, Tensor]:
    """Omega and leak of a multi-level neuron; the identity for one without T-GIM."""
    if isinstance(neuron, LMHT):
        return neuron.tgim()
    assert isinstance(neuron, MHT)
    return torch.eye(neuron.steps, dtype=torch.float64), torch.tensor(neuron.leak, dtype=torch.float64)


@torch.no_grad()
def reparameterize(network: Network) -> Network:
    """One-level network over ``L * T`` steps with the same spikes, for eval mode.

    Every current is cut into L equal parts: the image, each bias and batch normalisation's running mean and shift are divided
    by L; weights of spike-driven layers stay. The last linear layer's weight is multiplied by L instead, so that the
    time-mean logits agree. Spike sums are equal wherever no window leaves the exactness region (see :func:`certify`) and every
    operation between two neurons is affine (see :func:`lmht.graph.non_affine`).

    Args:
        network: network of :class:`~lmht.neurons.LMHT` or :class:`~lmht.neurons.MHT` neurons that share L and T; not changed.

    Raises:
        ValueError: no such neurons, or neurons that do not share L and T.
    """
    neurons = [module for module in network.modules() if isinstance(module, Neuron)]
    shapes = {(neuron.levels, neuron.steps) for neuron in neurons}
    if len(shapes) != 1:
        raise ValueError(
            f"reparameterize needs neurons that share L and T, got (L, T) = {sorted(shapes) or 'none at all'}"
        )
    levels, steps = shapes.pop()
    twin = copy.deepcopy(network)
    twin.steps = levels * steps
    layers = presynaptic(twin)
    first = next(name for name, sources in layers.items() if not _neurons(twin, sources))
    last = list(layers)[-1]
    for name, module in twin.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.div_(levels)
            module.bias.div_(levels)
        elif isinstance(module, Synapse):
            if name == last:
                module.weight *= levels
                continue
            if name == first:
                module.weight /= levels
            if module.bias is not None:
                module.bias.div_(levels)

    def one_level(neuron: nn.Module) -> nn.Module:
        assert isinstance(neuron, Neuron)
        tgim = expand_tgim(*window_tgim(neuron), levels)
        return LMHT(1, levels * steps, theta=neuron.theta, v0=neuron.v0, tgim=tgim)

    replace_modules(twin, Neuron, one_level)
    return twin.eval()


def repeat_frames(images: Tensor, network: Network, twin: Network) -> Tensor:
    """The input that the reparameterised twin takes: a static image as it is, each event frame L times."""
    return images.repeat_interleave(twin.steps // network.steps, 0) if network.frames else images


def _neurons(network: nn.Module, sources: list[str]) -> list[str]:
    return [name for name in sources if isinstance(network.get_submodule(name), Neuron)]
