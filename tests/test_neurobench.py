"""NeuroBench's figures of the expanded binary network beside ours: equal where both mean the same, else with a reason."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lmht import LMHT
from lmht.energy import Operations, count_operations
from lmht.graph import Kind, flow
from lmht.networks import MultiStep, build
from lmht.neurons import Neuron
from lmht.reparameterize import reparameterize
from theorems import calibrated

pytest.importorskip("neurobench", reason="neurobench is not installed; run tox -e interop")
from neurobench.benchmarks import Benchmark
from neurobench.metrics.static import ConnectionSparsity, Footprint
from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
from neurobench.models import TorchModel

L, T = 2, 2
IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(theta: float = 1.0) -> MultiStep:
    torch.manual_seed(0)
    net = build("ResNet-20", lambda: LMHT(L, T, theta=theta, v0=theta / 2), classes=5, steps=T, width=1 / 2).double()
    net(IMAGES)  # batch normalisation gets statistics
    return net.eval()


def figures(net: MultiStep) -> tuple[dict[str, Any], Operations, float]:
    """NeuroBench's, over batches, and ours; the last one: our SOPs without the head's, which sees averages of spikes."""
    ours = count_operations(net, IMAGES)
    model = TorchModel(net)
    model.add_activation_module(Neuron)
    data = DataLoader(TensorDataset(IMAGES, torch.zeros(len(IMAGES))), batch_size=4)
    metrics = [[Footprint, ConnectionSparsity], [ActivationSparsity, SynapticOperations]]
    with torch.no_grad():
        theirs = Benchmark(model, data, [], [], metrics).run(quiet=True)
    head = str(flow(net).of(Kind.SYNAPSE)[-1].node.target)
    return theirs, ours, ours.total_sops - ours.sops[head]


def test_equal_on_the_expanded_network() -> None:
    """SOPs, activation sparsity, footprint, connection sparsity."""
    net = network()
    twin = reparameterize(net)
    theirs, ours, sops = figures(twin)
    assert theirs["SynapticOperations"]["Effective_ACs"] == pytest.approx(sops, rel=1e-12)
    assert sops > 10_000

    outputs = [out for _, out in calibrated.run(twin, IMAGES)[1].values()]
    sites = sum(out.numel() for out in outputs) / len(IMAGES)
    assert theirs["ActivationSparsity"] == pytest.approx(1 - sum(ours.spikes.values()) / sites, rel=1e-12)
    assert 0.1 < theirs["ActivationSparsity"] < 0.99

    added = (L * T) ** 2 + L * T - (T**2 + 1)  # values of Omega and the leak, a neuron layer
    assert theirs["Footprint"] == Footprint()(TorchModel(net)) + len(outputs) * added * IMAGES.element_size()
    assert theirs["ConnectionSparsity"] == 0


def test_different_where_it_counts_otherwise() -> None:
    """Levels and thresholds other than 1 are multiply-accumulates to it, and weights of zero no operations."""
    theirs, _, sops = figures(reparameterize(network(theta=0.5)))
    assert theirs["SynapticOperations"]["Effective_ACs"] == 0
    assert theirs["SynapticOperations"]["Effective_MACs"] > sops > 0

    theirs, _, sops = figures(network())  # two levels, not expanded
    assert theirs["SynapticOperations"]["Effective_ACs"] < sops
    assert theirs["ActivationSparsity"] > 0

    twin = reparameterize(network())
    for module in twin.modules():
        if isinstance(module, nn.Conv2d):
            with torch.no_grad():
                module.weight[::2] = 0
    theirs, _, sops = figures(twin)
    assert theirs["ConnectionSparsity"] == pytest.approx(0.5, abs=0.01)
    assert 0 < theirs["SynapticOperations"]["Effective_ACs"] <= 0.55 * sops
