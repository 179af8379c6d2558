"""The statements on whole networks: T-GIM to QCFS, T-GIM to STBP and Theorem A.2, layer by layer and at the logits.

They hold where every operation between two neurons is affine and applied step by step; what max-pooling after a neuron and
spiking self-attention do instead is exhibited at the end. These tests exercise our modules and networks, so they say
nothing about an ``--impl``. Spike counts must be equal as integers: each test first makes sure that no potential is so close to a
threshold that float64 could decide it either way.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lmht import LIF, LMHT, QCFS, FreeTGIM
from lmht.conversion import replace_modules, to_lmht
from lmht.graph import non_affine
from lmht.networks import ARCHITECTURES, Network
from lmht.reparameterize import certify, reparameterize
from theorems.calibrated import AFFINE, images, network, qcfs_levels, run, spike_counts

AFFINE_ONLY = "networks whose operations between two neurons are affine"
SIZES = [(1, 4), (2, 2), (4, 2), (2, 4), (3, 3)]
FLOAT = "random calibrated networks, float64, margin to every tie checked"
CLEAR = 1e-9  # of a threshold: far above what float64 loses in these networks, about 1e-14


pytestmark = pytest.mark.usefixtures("ours")

affine = pytest.mark.parametrize("architecture", AFFINE)
sizes = pytest.mark.parametrize(("levels", "steps"), SIZES)


def close(one: Tensor, other: Tensor) -> None:
    """Equal up to float64 rounding of sums, relative to the largest value."""
    one, other = one.detach(), other.detach()
    assert float((one - other).abs().max()) <= 1e-12 * float(one.abs().max())


def test_every_architecture_is_either_checked_or_a_counterexample() -> None:
    assert {*AFFINE, "Transformer-4-384"} == set(ARCHITECTURES)


@pytest.mark.statement("T-GIM to QCFS", precondition=AFFINE_ONLY, how=FLOAT)
@affine
@sizes
def test_uniform_tgim_network_is_the_qcfs_network(architecture: str, levels: int, steps: int) -> None:
    """Omega = 1/T, lambda = 1, theta = vartheta/L, v(0) = theta/2: spike sums are the quantised ANN's levels, in every layer."""
    total, data = levels * steps, images()
    ann = network(architecture, lambda: QCFS(total), data, **AFFINE[architecture])
    assert non_affine(ann) == []
    quantised = qcfs_levels(ann, data)
    snn = to_lmht(ann, levels, steps)
    counts = spike_counts(snn, data, windows=1)
    assert list(counts) == list(quantised)
    reached = set()
    for name, (drive, level) in quantised.items():
        assert float((drive - drive.round().clamp(1, total)).abs().min()) > CLEAR, (
            f"{name}: a tie; draw another network"
        )
        reached |= set(level.unique().tolist())
        assert torch.equal(counts[name][0], level), f"{name}: {int((counts[name][0] != level).sum())} neurons differ"
    assert reached == set(range(total + 1)), "the test must see silent, saturated and all neurons between"
    close(ann(data), snn(data))


@pytest.mark.statement(
    "T-GIM to STBP", precondition="Omega = identity, L = 1", how="random calibrated networks, float64, =="
)
@affine
@pytest.mark.parametrize("leak", [0.5, 1.0])
def test_identity_tgim_network_is_the_lif_network(architecture: str, leak: float) -> None:
    """Forward equal in every bit; backward equal to the spatial-only gradient, and different from STBP's with the chain kept."""
    steps, data = 4, images()
    options = AFFINE[architecture]

    def neuron() -> LMHT:
        return LMHT(1, steps, tgim=FreeTGIM(steps, "identity", leak))

    lmht_network = network(architecture, neuron, data, steps=steps, reach=0.3, **options)

    def lif(temporal_gradient: bool) -> Network:
        net = copy.deepcopy(lmht_network)

        def make(old: nn.Module) -> nn.Module:
            assert isinstance(old, LMHT)
            return LIF(steps, theta=old.theta, leak=leak, v0=old.v0, temporal_gradient=temporal_gradient)

        replace_modules(net, LMHT, make)
        return net

    spatial, chained = lif(False), lif(True)
    logits, layers = run(lmht_network, data)
    lif_logits, lif_layers = run(spatial, data)
    assert torch.equal(logits, lif_logits)
    for name, (_, out) in layers.items():
        assert torch.equal(out, lif_layers[name][1]), name
    assert max(float(out.max()) for _, out in layers.values()) > 0

    def gradient(net: Network) -> Tensor:
        net.zero_grad()
        net(data).square().sum().backward()
        return torch.cat(
            [p.grad.flatten() for m in net.modules() if isinstance(m, nn.Conv2d) and (p := m.weight).grad is not None]
        )

    of_lmht = gradient(lmht_network)
    close(of_lmht, gradient(spatial))
    assert float((of_lmht - gradient(chained)).norm()) > 1e-3 * float(of_lmht.norm())


@pytest.mark.statement(
    "Theorem A.2",
    precondition=AFFINE_ONLY + "; every window in the exactness region A or B",
    how=FLOAT + ", certificate",
)
@affine
@sizes
def test_reparameterised_network_is_the_original(architecture: str, levels: int, steps: int) -> None:
    """Random Omega and leak < 1, currents below L*theta: no window outside, so equal spike sums in every window and layer."""
    data = images()
    net = network(architecture, lambda: LMHT(levels, steps), data, steps=steps, reach=1.01, **AFFINE[architecture])
    layers = certify(net, [data])
    assert all(layer.outside == 0 and layer.margin > CLEAR for layer in layers.values())
    twin = reparameterize(net)
    original, split = spike_counts(net, data, windows=steps), spike_counts(twin, data, windows=steps)
    assert list(original) == list(split)
    for name in original:
        assert torch.equal(original[name], split[name]), name
    assert sum(int(counts.sum()) for counts in original.values()) > 0
    close(net(data), twin(data))


def frames(steps: int) -> Tensor:
    return torch.randn(steps, 3, 2, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.statement(
    "Theorem A.2",
    precondition=AFFINE_ONLY + "; every window in the exactness region A or B",
    how=FLOAT + ", certificate",
)
@pytest.mark.parametrize("architecture", ["ResNet-18", "VGG-13"])
def test_reparameterised_network_on_frames(architecture: str) -> None:
    """One frame a step: the twin sees each frame L times, at 1/L of its current."""
    levels, steps = 2, 3
    data = frames(steps)
    net = network(architecture, lambda: LMHT(levels, steps), data, steps=steps, reach=1.01, frames=True, in_channels=2)
    assert all(layer.outside == 0 and layer.margin > CLEAR for layer in certify(net, [data]).values())
    original = spike_counts(net, data, windows=steps)
    split = spike_counts(reparameterize(net), data.repeat_interleave(levels, 0), windows=steps)
    assert all(torch.equal(original[name], split[name]) for name in original)


def trains(neuron: LMHT, currents: list[float]) -> Tensor:
    """Output of a neuron over its steps, ``[T, currents]``, for currents that are the same at every step."""
    return neuron(torch.tensor([currents], dtype=torch.float64).expand(neuron.steps, 1, -1), folded=False)[
        :, 0
    ].detach()


@pytest.mark.statement("T-GIM to QCFS", precondition=AFFINE_ONLY, how="counterexample constructed, exact in floats")
def test_max_pooling_after_a_neuron_is_a_counterexample(counterexample: Callable[[str], None]) -> None:
    """Two neurons that fire once each, at different steps: the mean of the maximum is not the maximum of the means."""
    currents = [0.5, 0.25]
    s = trains(LMHT(1, 2, v0=0.5), currents)
    levels = QCFS(2, scale=1.0)(torch.tensor(currents)).detach()
    assert s.tolist() == [[1, 0], [0, 1]]
    assert s.mean(0).tolist() == levels.tolist() == [0.5, 0.5]
    assert (float(s.amax(1).mean()), float(levels.max())) == (1, 0.5)
    counterexample(
        "max-pool over two neurons, L = 1, T = 2, theta = 1, v(0) = 1/2, I = 1/2 and 1/4: spike trains (1, 0) and (0, 1), "
        "pooled mean 1; QCFS has 1/2"
    )


@pytest.mark.statement("Theorem A.2", precondition=AFFINE_ONLY, how="counterexample constructed, exact in floats")
def test_max_pooling_breaks_reparameterisation(counterexample: Callable[[str], None]) -> None:
    """Inside the exactness region: one M-HT step emits one spike in both neurons; their twins emit it at different steps."""
    single = trains(LMHT(2, 1, v0=0.5), [1.0, 0.5])
    double = trains(LMHT(1, 2, v0=0.5), [0.5, 0.25])
    assert single.tolist() == [[1, 1]]
    assert double.sum(0).tolist() == [1, 1]
    assert (float(single.amax(1).sum()), float(double.amax(1).sum())) == (1, 2)
    counterexample(
        "max-pool over two neurons, L = 2, T = 1, theta = 1, v(0) = 1/2, I = 1 and 1/2: 1 pooled spike; the twin over two "
        "steps has 2"
    )


@pytest.mark.statement("T-GIM to QCFS", precondition=AFFINE_ONLY, how="counterexample constructed, exact in floats")
def test_a_product_of_spike_trains_is_a_counterexample(counterexample: Callable[[str], None]) -> None:
    """q and k of self-attention that fire at different steps: the mean of the product is not the product of the means."""
    currents = [0.5, 0.25]
    q, k = trains(LMHT(1, 2, v0=0.5), currents).unbind(1)
    q_level, k_level = QCFS(2, scale=1.0)(torch.tensor(currents)).detach()
    assert (float((q * k).mean()), float(q_level * k_level)) == (0, 0.25)
    counterexample(
        "product q*k of self-attention, L = 1, T = 2, theta = 1, v(0) = 1/2, I = 1/2 and 1/4: spike trains (1, 0) and (0, 1), "
        "mean product 0; QCFS has 1/4"
    )


NOT_AFFINE = [
    ("ResNet-18", {"stem": "imagenet"}, {"MaxPool2d"}),
    ("ResNet-34", {"stem": "imagenet"}, {"MaxPool2d"}),
    ("Transformer-4-384", {"width": 1 / 8, "depth": 1}, {"MaxPool2d", "matmul"}),
    ("Transformer-4-384", {"width": 1 / 8, "depth": 1, "pools": (False, False)}, {"matmul"}),
]


@pytest.mark.statement(
    "T-GIM to QCFS", precondition=AFFINE_ONLY, how="random calibrated networks outside it: they differ"
)
@pytest.mark.parametrize(("architecture", "options", "why"), NOT_AFFINE)
def test_whole_networks_that_are_not_affine_differ(architecture: str, options: dict, why: set[str]) -> None:
    """Equal up to the first operation that is not affine, different after it; the certificate refuses such a network."""
    data = images()
    ann = network(architecture, lambda: QCFS(4), data, **options)
    assert all(any(operation in found for found in non_affine(ann)) for operation in why)
    snn = to_lmht(ann, 2, 2, inexact=True)
    counts = spike_counts(snn, data, windows=1)
    equal = [torch.equal(counts[name][0], level) for name, (_, level) in qcfs_levels(ann, data).items()]
    assert equal[0]
    assert not equal[-1]
    logits = ann(data)
    assert float((logits - snn(data)).detach().abs().max()) > 1e-3 * float(logits.detach().abs().max())
    with pytest.raises(ValueError, match="not affine"):
        certify(snn, [data])
