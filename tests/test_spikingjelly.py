"""Our neurons in SpikingJelly's networks and its neurons in ours: the same spikes, bit for bit."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmht import IF, LMHT
from lmht.energy import count_operations
from lmht.networks import MultiStep, build
from lmht.reparameterize import reparameterize
from tests.dyadic import dyadic_images, make_dyadic

pytest.importorskip("spikingjelly", reason="spikingjelly is not installed; run tox -e interop")
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import spiking_resnet

from lmht.interop.spikingjelly import FromSpikingJelly, ToSpikingJelly

T = 4


def theirs() -> Any:
    return neuron.IFNode(v_threshold=1.0, v_reset=None)


def spiking_resnet_of(activation: Any) -> nn.Module:
    net = spiking_resnet.SpikingResNet(
        spiking_resnet.BasicBlock, [1, 1, 1, 1], num_classes=5, spiking_neuron=activation
    )
    functional.set_step_mode(net, "m")
    return make_dyadic(net, grid=1 / 64)


def outputs(net: nn.Module, kinds: Any, data: Tensor) -> list[Tensor]:
    """Spikes of every neuron and the logits."""
    seen: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda m, i, out: seen.append(out)) for m in net.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        logits = net(data)
    for hook in hooks:
        hook.remove()
    return [*seen, logits]


def test_ours_in_their_builder() -> None:
    """ResNet of SpikingJelly's builder in step mode m: our IF and its IFNode give the same spikes; nothing of ours is reset."""
    data = dyadic_images(T, 1, 3, 32, 32)
    reference = spiking_resnet_of(theirs)
    expected = outputs(reference, neuron.IFNode, data)
    net = spiking_resnet_of(lambda: ToSpikingJelly(IF(T)))
    net.load_state_dict({**net.state_dict(), **reference.state_dict()})
    found = outputs(net, ToSpikingJelly, data)
    assert len(found) == len(expected) == 10
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert 0 < sum(float(s.sum()) for s in found[:-1]) < sum(s.numel() for s in found[:-1])
    functional.reset_net(net)
    assert torch.equal(net(data), expected[-1])


def test_lmht_in_their_builder() -> None:
    """L = 2 with its T-GIM trains there, and is what the neuron gives on the folded layout."""
    net = spiking_resnet_of(lambda: ToSpikingJelly(LMHT(2, T)))
    data = dyadic_images(T, 2, 3, 32, 32)
    net(data).sum().backward()
    first = net.get_submodule("sn1")
    assert isinstance(first, ToSpikingJelly)
    assert first.neuron.tgim.a.grad is not None
    with torch.no_grad():
        current = net.bn1(net.conv1(data))
        folded = first.neuron(current.flatten(0, 1)).unflatten(0, (T, 2))
        assert torch.equal(first(current), folded)
        assert folded.unique().tolist() == [0, 1, 2]


def test_ours_in_their_containers() -> None:
    """SeqToANNContainer folds time as our networks do: there a neuron needs no adapter."""
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 4, 3), LMHT(2, T), nn.Flatten()
    data = torch.randn(T, 3, 3, 8, 8)
    folded = nn.Sequential(*parts)(data.flatten(0, 1)).unflatten(0, (T, 3))
    assert torch.equal(layer.SeqToANNContainer(*parts)(data), folded)


@pytest.mark.parametrize("net", [layer.MultiStepContainer, nn.Sequential])
def test_step_by_step_is_refused(net: Any) -> None:
    """Also where T = N, and shapes would fit."""
    with pytest.raises(ValueError, match=r"LMHT takes all T = 4 time-steps at once.*set_step_mode"):
        net(ToSpikingJelly(LMHT(2, T)))(torch.randn(T, T, 5))
    with pytest.raises(ValueError, match=r"T = 4, got shape \(3, 2, 5\)"):
        ToSpikingJelly(LMHT(2, T), step_mode="m")(torch.randn(3, 2, 5))


def test_theirs_in_our_networks() -> None:
    """IFNode in our ResNet-20 gives the logits of our IF, again at the next pass and in a copy; its spikes are counted as ours."""
    options: dict[str, Any] = {"classes": 5, "steps": T, "width": 1 / 4}
    ours = make_dyadic(build("ResNet-20", lambda: IF(T), **options))
    mixed = make_dyadic(build("ResNet-20", lambda: FromSpikingJelly(theirs(), T), **options))
    data = dyadic_images(2, 3, 8, 8)
    with torch.no_grad():
        expected = ours(data)
        assert torch.equal(mixed(data), expected)
        assert torch.equal(copy.deepcopy(mixed)(data), expected)
    mixed(data).sum().backward()
    assert torch.equal(copy.deepcopy(mixed).eval()(data), expected)
    counted = count_operations(mixed, data)
    assert counted.spikes == count_operations(ours, data).spikes
    assert counted.total_sops > 0
    with pytest.raises(ValueError, match=r"FromSpikingJelly.*has dynamics of its own"):
        reparameterize(mixed)
    alone, beside = (
        MultiStep(nn.Sequential(neuron_, nn.Flatten(), make_dyadic(nn.Linear(192, 5))), steps=T)
        for neuron_ in (IF(T), FromSpikingJelly(theirs(), T))
    )
    assert torch.equal(alone(data / 4), beside(data / 4))
    with pytest.raises(ValueError, match=r"T = 4, the network steps = 2"):
        build("VGG-13", lambda: FromSpikingJelly(theirs(), T), classes=5, steps=2, width=1 / 16)
    with pytest.raises(ValueError, match="NonSpikingLIFNode is no spiking neuron"):
        FromSpikingJelly(neuron.NonSpikingLIFNode(), T)
