"""Networks that the graph tools got wrong in silence: right, or refused by name."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import prune

from lmht import LMHT, QCFS
from lmht.conversion import to_lmht
from lmht.energy import count_operations
from lmht.networks import Network, build
from lmht.reparameterize import certify, reparameterize


def small(norm: nn.Module, first: nn.Module, second: nn.Module, steps: int) -> Network:
    head = nn.Sequential(nn.Linear(4, 3))
    body = nn.Sequential(first, nn.Conv2d(4, 4, 3), norm, second, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Network(nn.Conv2d(1, 4, 3), body, head, in_channels=1, steps=steps, frames=False).double().eval()


def snn(norm: nn.Module) -> Network:
    return small(norm, LMHT(2, 2, v0=0.5), LMHT(2, 2, v0=0.5), 2)


def images() -> Tensor:
    return torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4, affine=False), nn.SyncBatchNorm(4)])
def test_batch_norms_are_cut_into_levels_like_any_other(norm: nn.Module) -> None:
    norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1, -0.4]))
    network = snn(norm)
    found = certify(network, [images()])
    assert all(layer.difference == 0 for layer in found.values())
    assert any(layer.spikes for layer in found.values())
    torch.testing.assert_close(reparameterize(network)(images()), network(images()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LocalResponseNorm(2)],
)
def test_norms_that_are_not_exact_are_refused_by_name(norm: nn.Module) -> None:
    with pytest.raises(ValueError, match=type(norm).__name__):
        reparameterize(snn(norm))


def test_an_activation_in_two_places_is_converted_in_both() -> None:
    shared = QCFS(4)
    ann = small(nn.BatchNorm2d(4), shared, shared, 1)
    converted = to_lmht(ann, 2, 2)
    assert converted.body[0] is converted.body[3]
    assert isinstance(converted.body[0], LMHT)
    torch.testing.assert_close(converted(images()), ann(images()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel])
def test_what_is_no_network_is_refused(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"Network is needed.*\.module"):
        to_lmht(wrap(small(nn.BatchNorm2d(4), QCFS(4), QCFS(4), 1)), 2, 2)


def test_pruned_and_parametrised_weights_are_refused() -> None:
    pruned = snn(nn.BatchNorm2d(4))
    prune.l1_unstructured(pruned.body[1], "weight", 0.5)
    with pytest.raises(ValueError, match=r"prune\.remove"):
        reparameterize(pruned)
    normed = snn(nn.BatchNorm2d(4))
    nn.utils.parametrizations.weight_norm(normed.body[1])
    with pytest.raises(ValueError, match="remove_parametrizations"):
        reparameterize(normed)


def test_a_network_checks_its_neurons_steps() -> None:
    with pytest.raises(ValueError, match="steps=2"):
        build("ResNet-20", lambda: LMHT(2, 2), classes=10, width=0.1)


def test_counting_leaves_every_module_in_its_mode() -> None:
    network = snn(nn.BatchNorm2d(4)).train()
    network.body[2].eval()
    before = {name: module.training for name, module in copy.deepcopy(network).named_modules()}
    count_operations(network, images())
    assert {name: module.training for name, module in network.named_modules()} == before


@pytest.mark.parametrize("assign", [False, True])
def test_a_refused_checkpoint_leaves_the_network_as_it_was(assign: bool) -> None:
    network, other = snn(nn.BatchNorm2d(4)), snn(nn.BatchNorm2d(4))
    kept, parameters = copy.deepcopy(network.state_dict()), list(network.parameters())
    checkpoint = {name: value + 1.0 for name, value in other.state_dict().items()}  # another L and T, too
    with pytest.raises(ValueError, match="checkpoint has L = 3, T = 3"):
        network.load_state_dict(checkpoint, assign=assign)
    torch.testing.assert_close(network.state_dict(), kept, rtol=0, atol=0)
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    network.load_state_dict(other.state_dict())
    torch.testing.assert_close(network.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_a_network_on_the_meta_device_and_under_fake_tensors() -> None:
    network, x = snn(nn.BatchNorm2d(4)), images()
    assert copy.deepcopy(network).to("meta")(x.to("meta")).shape == (8, 3)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert network(mode.from_tensor(x)).shape == (8, 3)
    with FakeTensorMode():
        network = build("ResNet-20", lambda: LMHT(2, 2), classes=3, steps=2, width=0.1)
        assert network(torch.randn(8, 3, 8, 8)).shape == (8, 3)
