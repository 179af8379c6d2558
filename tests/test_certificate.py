"""The certificate of reparameterisation, against the twin itself: what it certifies is equal, what is broken it counts."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lmht import LMHT, MHT, FreeTGIM
from lmht.networks import Network
from lmht.reparameterize import certify, foretell, reparameterize
from theorems.calibrated import images, network, spike_counts


def measured(net: Network, data: Tensor) -> dict[str, int]:
    """``sum |s(t) - s_hat(t)|`` of every layer, from a run of the network and one of the twin."""
    twin, steps = reparameterize(net), net.steps
    levels = twin.steps // steps
    split = spike_counts(twin, data.repeat_interleave(levels, 0) if net.frames else data, windows=steps)
    return {
        name: int((counts - split[name]).abs().sum()) for name, counts in spike_counts(net, data, windows=steps).items()
    }


def tiny(steps: int = 2) -> Network:
    """Two neurons in a row, weight 1, L = 2, theta = 1, no mixing over time: every number is dyadic, so floats are exact."""
    first, second = (LMHT(2, steps, tgim=FreeTGIM(steps, "identity")) for _ in range(2))
    stem, between, last = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False), nn.Linear(1, 1)
    net = Network(
        stem,
        nn.Sequential(first, between, second, nn.Flatten()),
        nn.Sequential(last),
        in_channels=1,
        steps=steps,
        frames=True,
    ).double()
    nn.init.ones_(stem.weight)
    nn.init.ones_(between.weight)
    return net.eval()


def currents(*values: float) -> Tensor:
    """Frames ``[T, N=1, 1, 1, 1]`` that drive the first neuron with these currents."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1, 1)


@pytest.mark.parametrize(("levels", "steps"), [(2, 2), (4, 2), (3, 3), (2, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_no_window_outside_means_equal_spike_sums(levels: int, steps: int, seed: int) -> None:
    data = images(seed=seed)
    net = network("ResNet-20", lambda: LMHT(levels, steps), data, steps=steps, reach=1.01, seed=seed)
    layers = certify(net, [data])
    assert all(layer.outside == 0 and layer.difference == 0 and layer.margin > 1e-9 for layer in layers.values())
    assert measured(net, data) == dict.fromkeys(layers, 0)


@pytest.mark.parametrize(("levels", "steps"), [(2, 2), (4, 2), (3, 3), (2, 4)])
@pytest.mark.parametrize(("architecture", "seed"), [("ResNet-20", 0), ("MS-ResNet-18", 1), ("VGG-13", 2)])
def test_with_windows_outside_the_bound_holds_and_is_attained(
    architecture: str, seed: int, levels: int, steps: int
) -> None:
    """Saturation, negative currents and leaks above 1: the layers differ, and upstream differences arrive downstream."""
    data = images(seed=seed)
    net = network(architecture, lambda: LMHT(levels, steps), data, steps=steps, reach=0.4, largest_leak=1.5, seed=seed)
    layers = certify(net, [data[:1], data[1:]])
    found = measured(net, data)
    assert all(found[name] <= layer.difference for name, layer in layers.items())
    assert found == {name: layer.difference for name, layer in layers.items()}
    assert sum(layer.outside for layer in layers.values()) > 0
    assert sum(found.values()) > 0


@pytest.mark.parametrize(
    ("values", "outside", "difference"),
    [
        ((-1.0, 3.0), 1, 1),  # u = -1 < 0, I = 3 >= L*theta: M-HT emits 2, IF 1
        ((3.75, -1.0), 1, 1),  # u = 7/4 >= theta, I = -1 < 0: M-HT emits 0, IF 1
        ((-1.0, 4.0), 1, 0),  # outside, where a window may differ but need not: both emit 2
        ((-1.0, 1.75), 0, 0),  # region A: negative, but not saturated
        ((4.0, 1.0), 0, 0),  # region B: saturated, but not negative
        ((0.5, 0.5), 0, 0),
    ],
)
def test_a_window_built_to_violate_is_caught(values: tuple[float, float], outside: int, difference: int) -> None:
    """The second layer's own windows are all inside: what its bound holds comes from the first layer, at weight 1."""
    net, data = tiny(), currents(*values)
    first, second = certify(net, [data]).values()
    assert (first.windows, first.outside, first.difference) == (2, outside, difference)
    assert (second.windows, second.outside, second.difference) == (2, 0, difference)
    assert list(measured(net, data).values()) == [difference, difference]


def test_a_difference_stays_in_the_potential() -> None:
    """The window after one that differs is inside, and differs too: the twin emits the missing spike one window late."""
    net, data = tiny(steps=3), currents(-1.0, 3.0, 0.0)
    first, _ = certify(net, [data]).values()
    assert (first.outside, first.difference) == (1, 2)
    assert measured(net, data)["body.0"] == 2


def test_counts_windows_spikes_and_margin() -> None:
    layers = certify(tiny(), [currents(0.5, 1.25), currents(-1.0, 3.25)])
    first = layers["body.0"]
    assert list(layers) == ["body.0", "body.2"]
    assert (first.windows, first.outside, first.spikes, first.share_outside) == (4, 1, 0 + 1 + 0 + 2, 0.25)
    assert first.margin == 0.25  # m(2) = 0.5 + 1.25


def test_one_level_is_its_own_twin() -> None:
    data = images()
    net = network("VGG-13", lambda: LMHT(1, 4), data, steps=4, reach=0.4, largest_leak=1.5)
    assert all(layer.outside == layer.difference == 0 for layer in certify(net, [data]).values())


def test_neurons_without_tgim() -> None:
    data = images()
    net = network("VGG-13", lambda: MHT(4, 2, leak=1.25), data, steps=2, reach=0.3)
    layers = certify(net, [data])
    assert sum(layer.difference for layer in layers.values()) > 0
    assert measured(net, data) == {name: layer.difference for name, layer in layers.items()}


def test_float32_and_frames() -> None:
    data = torch.randn(2, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = network("VGG-13", lambda: LMHT(2, 2), data, steps=2, reach=0.4, frames=True, in_channels=2)
    layers = certify(net, [data])
    assert measured(net, data) == {name: layer.difference for name, layer in layers.items()}
    single = certify(net.float(), [data.float()])
    assert [layer.windows for layer in single.values()] == [layer.windows for layer in layers.values()]


def test_network_is_not_changed() -> None:
    data = images()
    net = network("VGG-13", lambda: LMHT(2, 2), data, steps=2).train()
    before, modules = copy.deepcopy(net.state_dict()), [type(module) for module in net.modules()]
    certify(net, [data])
    assert net.training
    assert [type(module) for module in net.modules()] == modules
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_certifies_the_network_of_eval_mode() -> None:
    """Running statistics, as the twin uses them, whatever mode the network is in."""
    data = images()
    net = network("VGG-13", lambda: LMHT(2, 2), data, steps=2, reach=0.4, largest_leak=1.5)
    assert certify(net.train(), [data]) == certify(net.eval(), [data])


def test_refuses_what_it_can_not_certify() -> None:
    data = images()
    with pytest.raises(ValueError, match=r"MaxPool2d.* not affine"):
        certify(network("ResNet-18", lambda: LMHT(2, 2), data, steps=2, stem="imagenet"), [data])
    with pytest.raises(ValueError, match="share L and T"):
        certify(network("VGG-13", nn.ReLU, data), [data])
    net = network("VGG-13", lambda: LMHT(2, 2), data, steps=2)
    for nothing in ([], [data[:0]]):
        with pytest.raises(ValueError, match="at least one"):
            certify(net, nothing)


@pytest.mark.parametrize(("reach", "largest_leak"), [(1.01, 1.0), (0.4, 1.5)])
def test_the_twins_logits_are_foretold_image_by_image(reach: float, largest_leak: float) -> None:
    data = images(seed=3)
    net = network("VGG-13", lambda: LMHT(2, 2), data, steps=2, reach=reach, largest_leak=largest_leak, seed=3)
    logits, same = foretell(net, data)
    with torch.no_grad():
        twin, own = reparameterize(net)(data), net(data)
    torch.testing.assert_close(logits, twin, rtol=0, atol=1e-9)
    torch.testing.assert_close(twin[same], own[same], rtol=0, atol=1e-9)
    assert bool(same.all()) == (reach > 1)
