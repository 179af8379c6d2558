"""Reparameterisation: an LM-HT network over T steps as a one-level network over L*T steps (Theorem A.2)."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lmht.conversion import replace_modules
from lmht.functional import compute_dtype, initial_potential
from lmht.graph import Synapse, check_network, non_affine, presynaptic
from lmht.networks.base import Network
from lmht.neurons import LMHT, MHT, Neuron
from lmht.surrogate import fire
from lmht.tgim import FixedTGIM

_NORMALISATIONS = ("torch.nn.modules.normalization", "torch.nn.modules.instancenorm")  # not affine, or not by L parts


def expand_tgim(omega: Tensor, leak: Tensor, levels: int) -> FixedTGIM:
    """``omega_hat = omega / L`` on every L x L block of an LT x LT matrix; leak lambda between windows, 1 inside one.

    Args:
        omega: ``[T, T]``. leak: ``[]`` or ``[T, 1]``. levels: ``L``.
    """
    steps = len(omega)
    omega_hat = torch.kron(omega, torch.full((levels, levels), 1 / levels, dtype=omega.dtype, device=omega.device))
    leak_hat = omega.new_ones(steps, levels)
    leak_hat[:, :1] = leak
    return FixedTGIM(omega_hat, leak_hat.reshape(-1, 1))


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
        ValueError: no such neurons, neurons that do not share L and T, a layer with parameters or a normalisation that can't be
            cut into L parts, or a network that :func:`lmht.graph.check_network` refuses.
    """
    check_network(network)
    levels, steps = _levels_and_steps(network)
    _refuse(network)
    twin = copy.deepcopy(network)
    twin.steps = levels * steps
    layers = presynaptic(twin)
    first = next(name for name, sources in layers.items() if not _neurons(twin, sources))
    last = list(layers)[-1]
    for name, module in twin.named_modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None  # _refuse
            module.running_mean.div_(levels)
            if module.affine:
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


@dataclass
class LayerCertificate:
    """What :func:`certify` found in one layer, over all data; a window is one neuron in one time-step of one sample.

    Attributes:
        windows: number of windows.
        outside: windows of the LM-HT network outside the exactness region.
        spikes: spikes of the LM-HT network.
        difference: upper bound on ``sum |s(t) - s_hat(t)|`` over all windows, ``s_hat(t)`` the twin's spikes in the L steps of
            window t. It includes what arrives from layers before, and it is attained: in exact arithmetic it is the sum.
        margin: smallest distance of a potential from a threshold, in units of theta. Floats keep the promise of the two
            numbers above as long as their rounding stays below it; exact ties (0) need exact arithmetic.
    """

    windows: int = 0
    outside: int = 0
    spikes: int = 0
    difference: int = 0
    margin: float = float("inf")

    @property
    def share_outside(self) -> float:
        return self.outside / self.windows


@torch.no_grad()
def certify(network: Network, batches: Iterable[Tensor]) -> dict[str, LayerCertificate]:
    """Say, for the data given, how far the reparameterised twin can differ from an LM-HT network, layer by layer.

    Theorem A.2 makes the currents of window t sum to ``I(t)``, in L equal parts. The spikes are then equal too if the window
    is in the exactness region (A) ``u < theta and I < L * theta`` or (B) ``u >= 0 and I >= 0`` with ``u = lambda * v(t-1)``,
    so **no window outside, in a layer and all before it, means equal spikes in every window** of that layer (proved for all L,
    all T, all reals in ``theorems/proofs``). A window outside may differ, and what comes after it, in time or in depth, too.
    All of that is in ``difference``: the twin is followed window by window, at T convolutions instead of L * T, which is
    possible because between two neurons everything is affine and so needs a window's spike sum only.

    Args:
        network: network of :class:`~lmht.neurons.LMHT` or :class:`~lmht.neurons.MHT` neurons that share L and T; not changed.
        batches: inputs as the network takes them, ``[N, C, H, W]`` or ``[T, N, C, H, W]`` each.

    Returns:
        By the name of each neuron layer, in order of definition.

    Raises:
        ValueError: no such neurons, neurons that do not share L and T, an operation between two neurons that is not affine, or
            no data.
    """
    check_network(network)
    _levels_and_steps(network)
    if found := non_affine(network):
        raise ValueError(
            f"no certificate: {', '.join(found)} is not affine, so the twin differs in general; replace it"
        )
    both = _with_twin(network)
    for batch in batches:
        both(torch.cat([batch, batch], 1 if network.frames else 0))
    layers = {name: module.found for name, module in both.named_modules() if isinstance(module, _WithTwin)}
    if not all(layer.windows for layer in layers.values()):
        raise ValueError("certify needs at least one batch with at least one sample")
    return layers


@torch.no_grad()
def foretell(network: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the reparameterised twin will say of each image, without building it, followed as in :func:`certify`.

    Args:
        network: as for :func:`certify`; images: ``[N, C, H, W]`` or ``[T, N, C, H, W]``.

    Returns:
        The twin's time-mean logits ``[N, classes]``, and ``[N]`` whether all its spike sums equal the network's, which promises the
        network's own prediction.

    Raises:
        ValueError: as :func:`certify`.
    """
    check_network(network)
    _levels_and_steps(network)
    if found := non_affine(network):
        raise ValueError(f"can't follow the twin: {', '.join(found)} is not affine; replace it")
    both = _with_twin(network)
    logits = both(torch.cat([images, images], 1 if network.frames else 0))
    different = [d for module in both.modules() if isinstance(module, _WithTwin) for d in module.different]
    return logits[len(logits) // 2 :], ~torch.stack(different).any(0)


def _with_twin(network: Network) -> Network:
    both = copy.deepcopy(network).eval()
    replace_modules(both, Neuron, _WithTwin)
    return both


class _WithTwin(nn.Module):
    """A neuron on the first half of the batch, on the second half its twin: L one-level steps a window, their spikes summed."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        assert isinstance(neuron, Neuron)
        self.neuron, self.found = neuron, LayerCertificate()
        self.different: list[Tensor] = []  # of every call, by sample: a neuron may be used in several places

    def forward(self, x: Tensor) -> Tensor:
        theta, levels, steps = self.neuron.theta, self.neuron.levels, self.neuron.steps
        x, x_hat = x.to(compute_dtype(x)).unflatten(0, (steps, 2, len(x) // (2 * steps))).unbind(1)
        omega, leak = (part.to(x) for part in window_tgim(self.neuron))
        leaks = leak.expand(steps, 1)[:, 0]
        v = v_hat = initial_potential(x, self.neuron.v0)
        different = x.new_zeros(x.shape[1], dtype=torch.bool)
        outs = []
        for t in range(steps):
            u, v_hat = leaks[t] * v, leaks[t] * v_hat
            m, current, part = u, torch.zeros_like(u), torch.zeros_like(u)
            for j in range(steps):
                m = m + omega[t, j] * x[j]
                current = current + omega[t, j] * x[j]
                part = part + omega[t, j] / levels * x_hat[j]
            s, s_hat = fire(m, theta=theta, levels=levels), torch.zeros_like(v_hat)
            v = m - s * theta
            for _ in range(levels):
                m_hat = v_hat + part
                spike = fire(m_hat, theta=theta, levels=1)
                v_hat, s_hat = m_hat - spike * theta, s_hat + spike
            outs.append(torch.stack([s, s_hat]) * theta)
            inside = ((u < theta) & (current < levels * theta)) | ((u >= 0) & (current >= 0))
            self.found.windows += s.numel()
            self.found.outside += int((~inside).sum()) if levels > 1 else 0  # one level is its own twin
            self.found.spikes += int(s.sum(dtype=torch.float64))
            different |= (s != s_hat).flatten(1).any(1)
            self.found.difference += int((s - s_hat).abs().sum(dtype=torch.float64))
            if s.numel():
                margin = (m / theta - (m / theta).round().clamp(1, levels)).abs().min()
                self.found.margin = min(self.found.margin, float(margin))
        self.different.append(different)
        return torch.stack(outs).flatten(0, 2)


def _levels_and_steps(network: nn.Module) -> tuple[int, int]:
    shapes = {(module.levels, module.steps) for module in network.modules() if isinstance(module, Neuron)}
    if len(shapes) != 1:
        raise ValueError(
            f"reparameterisation needs neurons that share L and T, got (L, T) = {sorted(shapes) or 'none at all'}"
        )
    return shapes.pop()


def _refuse(network: nn.Module) -> None:
    """A ValueError for each layer of which it is not known how its current is cut into L parts."""
    inside = {part for neuron in network.modules() if isinstance(neuron, Neuron) for part in neuron.modules()}
    for name, module in network.named_modules():
        batch_norm = isinstance(module, _BatchNorm) and not isinstance(module, _InstanceNorm)
        if batch_norm and module.running_mean is None:
            raise ValueError(
                f"{name} ({type(module).__name__}) has no running statistics: batch statistics are not affine"
            )
        own = any(True for _ in module.parameters(recurse=False)) or type(module).__module__ in _NORMALISATIONS
        if own and not batch_norm and module not in inside and not isinstance(module, Synapse):
            raise ValueError(f"{name} ({type(module).__name__}) can't be reparameterised exactly; replace it")


def _neurons(network: nn.Module, sources: list[str]) -> list[str]:
    return [name for name in sources if isinstance(network.get_submodule(name), Neuron)]
