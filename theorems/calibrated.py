"""Random float64 networks in which nothing is trivial: calibrated batch normalisation, thresholds within the currents' range."""

from typing import Any

import torch
from torch import Tensor, nn

from lmht.networks import Activation, Network, build
from lmht.neurons import QCFS, Neuron
from lmht.reparameterize import window_tgim
from lmht.tgim import SigmoidTGIM

# Each architecture whose operations between two neurons are affine, in a form that keeps it so.
AFFINE: dict[str, dict[str, Any]] = {
    "ResNet-18": {},
    "ResNet-19": {},
    "ResNet-20": {},
    "ResNet-34": {"stem": "imagenet-avg"},
    "MS-ResNet-18": {},
    "MS-ResNet-34": {"stem": "imagenet"},  # its max-pool comes before the first neuron
    "VGG-13": {},
    "VGG-16": {},
}


def images(n: int = 3, *, seed: int = 1) -> Tensor:
    """``[n, 3, 32, 32]``."""
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(
    architecture: str,
    activation: Activation,
    data: Tensor,
    *,
    steps: int = 1,
    reach: float = 0.5,
    largest_leak: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> Network:
    """A network of random weights, T-GIMs and affine parts of batch normalisation, calibrated on ``data``, in eval mode.

    Args:
        activation: QCFS, whose scales are set, or a spiking neuron, whose thresholds and ``v(0) = theta / 2`` are.
        reach: the highest level as a share of the largest current on ``data``: below 1, some neurons saturate.
        largest_leak: leaks are drawn in (1/2, largest_leak).
    """
    torch.manual_seed(seed)
    net = build(architecture, activation, steps=steps, **({"width": 1 / 16, "classes": 5} | options)).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0  # one training-mode pass is the calibration
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
        elif isinstance(module, SigmoidTGIM):
            nn.init.normal_(module.a)
            nn.init.constant_(module.alpha, float(torch.logit(torch.rand(()) * (largest_leak - 0.5))))
    set_range = [
        module.register_forward_pre_hook(lambda module, inputs: _set_range(module, inputs[0], reach))
        for module in net.modules()
        if isinstance(module, Neuron | QCFS)
    ]
    with torch.no_grad():
        net.train()(data)
        net.eval()(data)  # thresholds for the running statistics, not the batch's
    for hook in set_range:
        hook.remove()
    return net


def _set_range(module: nn.Module, x: Tensor, reach: float) -> None:
    if isinstance(module, QCFS):
        module.scale.data.copy_(reach * x.max())
    elif isinstance(module, Neuron):
        omega, _ = window_tgim(module)
        current = torch.tensordot(omega.to(x), x.unflatten(0, (module.steps, -1)), 1)
        module.theta = reach * float(current.max()) / module.levels
        module.v0 = module.theta / 2


def run(net: nn.Module, data: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Logits, and input and output of every activation by name, in order of execution."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda _, inputs, out, name=name: seen.update({name: (inputs[0], out)}))
        for name, module in net.named_modules()
        if isinstance(module, Neuron | QCFS)
    ]
    with torch.no_grad():
        logits = net(data)
    for hook in hooks:
        hook.remove()
    return logits, seen


def spike_counts(net: nn.Module, data: Tensor, *, windows: int) -> dict[str, Tensor]:
    """Spikes of every neuron layer, summed within each of so many equal windows, ``[windows, N, ...]``."""
    counts = {}
    for name, (_, out) in run(net, data)[1].items():
        neuron = net.get_submodule(name)
        assert isinstance(neuron, Neuron)
        spikes = (out / neuron.theta).round()
        counts[name] = spikes.unflatten(0, (windows, neuron.steps // windows, -1)).sum(1)
    return counts


def qcfs_levels(net: Network, data: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """``x * Tq / vartheta + 1/2`` and the level that it is floored and clipped to, of every QCFS layer, ``[N, ...]``."""
    levels = {}
    for name, (x, out) in run(net, data)[1].items():
        layer = net.get_submodule(name)
        assert isinstance(layer, QCFS)
        scale = layer.scale.detach()
        levels[name] = (x * layer.levels / scale + 0.5, (out * layer.levels / scale).round())
    return levels
