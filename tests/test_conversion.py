"""Conversion and reparameterisation of whole networks: what they promise, and that they leave their input alone."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lmht
from lmht.conversion import to_if, to_lmht
from lmht.networks import Network, build
from lmht.reparameterize import expand_tgim, reparameterize


def calibrated(levels: int, architecture: str = "ResNet-20") -> tuple[Network, torch.Tensor]:
    torch.manual_seed(0)
    network = build(architecture, lambda: lmht.QCFS(levels, 2.0), classes=5, width=0.5).double()
    images = torch.randn(8, 3, 32, 32).double()
    for _ in range(20):
        network(images)
    return network.eval(), images


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize(("levels", "steps"), [(2, 2), (4, 2), (2, 4)])
def test_exact_start_is_the_quantised_ann_and_algorithm_1_is_not(levels: int, steps: int) -> None:
    ann, images = calibrated(levels * steps)
    expected = ann(images)
    assert gap(to_lmht(ann, levels, steps)(images), expected) < 1e-12
    assert gap(to_lmht(ann, levels, steps, start="algorithm1")(images), expected) > 0.5


class Stem(nn.Module):
    """Layers that aren't defined in the order in which they are run."""

    def __init__(self, run: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.last, self.first, self.run = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(3, 4, 1), run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


def aside(stem: Any, x: torch.Tensor) -> torch.Tensor:
    x = stem.first(x)
    stem.last(x)
    return x


SCALED = {
    "a layer": nn.Conv2d(3, 4, 1),
    "order": Stem(lambda m, x: nn.functional.avg_pool2d(m.last(m.first(x)), 1)),
    "ReLU": nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(1)),
    "aside": Stem(aside),
}
NOT_SCALED = {
    "parallel": Stem(lambda m, x: m.last(m.first(x)) + m.first(x)),
    "shared": Stem(lambda m, x: m.last(m.last(m.first(x)))),
    "no weight": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)),
}


@pytest.mark.parametrize("name", [*SCALED, *NOT_SCALED])
def test_algorithm_1_scales_all_of_the_first_layers_current_or_refuses(name: str) -> None:
    stem = (SCALED | NOT_SCALED)[name]
    head = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    network, images = Network(stem, lmht.QCFS(4), head, in_channels=3, steps=1, frames=False), torch.randn(8, 3, 4, 4)
    if name in SCALED:
        torch.testing.assert_close(to_lmht(network, 2, 2, start="algorithm1").stem(images), 2 * stem(images))
    else:
        with pytest.raises(ValueError, match="the stem does not end in one affine layer with a weight"):
            to_lmht(network, 2, 2, start="algorithm1")


def test_if_conversion_comes_closer_with_more_steps() -> None:
    ann, images = calibrated(32)  # fine levels: the limit of many steps has no levels
    gaps = [gap(to_if(ann, steps)(images), ann(images)) for steps in (2, 32)]
    assert gaps[1] < gaps[0]


def test_conversion_and_reparameterisation_leave_their_network_alone() -> None:
    ann, _ = calibrated(4)
    before = copy.deepcopy(ann.state_dict())
    snn = to_lmht(ann, 2, 2, start="algorithm1")
    converted = copy.deepcopy(snn.state_dict())
    reparameterize(snn)
    for name, value in before.items():
        assert torch.equal(ann.state_dict()[name], value)
    assert all(torch.equal(snn.state_dict()[k], v) for k, v in converted.items() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("architecture", ["ResNet-18", "ResNet-19", "MS-ResNet-18", "VGG-13", "VGG-16"])
def test_reparameterised_network_equals_the_original_from_a_uniform_start(architecture: str) -> None:
    ann, images = calibrated(4, architecture)
    snn = to_lmht(ann, 2, 2)
    twin = reparameterize(snn)
    assert twin.steps == 4
    assert gap(twin(images), snn(images)) < 1e-12


def test_expanded_tgim_is_theorem_a2s() -> None:
    tgim = expand_tgim(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor(0.5), 2)
    assert tgim.omega.tolist() == [[0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1], [1.5, 1.5, 2, 2], [1.5, 1.5, 2, 2]]
    assert tgim.leak.flatten().tolist() == [0.5, 1, 0.5, 1]


def test_bad_networks_give_one_clear_error() -> None:
    ann, _ = calibrated(4)
    with pytest.raises(ValueError, match="start must be 'exact' or 'algorithm1', got 'best'"):
        to_lmht(ann, 2, 2, start="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the network has no QCFS activation to convert"):
        to_if(build("ResNet-20", nn.ReLU, classes=5), 4)
    with pytest.raises(ValueError, match=r"needs neurons that share L and T, got .* none at all"):
        reparameterize(ann)
    nn.init.constant_(next(m for m in ann.modules() if isinstance(m, lmht.QCFS)).scale, -1.0)
    with pytest.raises(ValueError, match=r"a QCFS scale is -1.0, not > 0"):
        to_lmht(ann, 2, 2)
