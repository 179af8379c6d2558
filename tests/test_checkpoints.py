"""Import of released checkpoints, from state dicts made here: of networks with other names, whose forward is written here."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmht import IF, LMHT, functional
from lmht.checkpoints import import_released, layers_in_order
from lmht.networks import Network, build

L, T, THETA = 2, 3, 0.6


class Neuron(nn.Module):
    """T-GIM and leak as the released files hold them, on ``[T*N, ...]``."""

    def __init__(self) -> None:
        super().__init__()
        self.mask, self.alpha = nn.Parameter(torch.randn(T, T, 1, 1, 1)), nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        omega, leak = 2 * self.mask.reshape(T, T).sigmoid() / T, self.alpha.sigmoid().reshape(()) + 0.5
        return functional.lmht(x.unflatten(0, (T, -1)), levels=L, theta=THETA, omega=omega, leak=leak).flatten(0, 1)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.act1 = Neuron()
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        down = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.downsample = nn.Sequential(*(() if same else down))
        self.act2 = Neuron()

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))) + self.downsample(x))


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), Neuron()
        sizes = [(4, 4, 1)] * 3 + [(4, 8, 2)] + [(8, 8, 1)] * 2 + [(8, 16, 2)] + [(16, 16, 1)] * 2
        self.blocks = nn.Sequential(*(Block(*size) for size in sizes))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.bn1(self.conv1(x.repeat(T, 1, 1, 1)))))
        return self.fc(x.mean((2, 3))).unflatten(0, (T, -1)).mean(0)


class VGG16(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for group, (convolutions, channels) in enumerate([(2, 4), (2, 8), (3, 16), (3, 32), (3, 32)]):
            for _ in range(convolutions):
                layers += [nn.Conv2d(before, channels, 3, 1, 1), nn.BatchNorm2d(channels), Neuron()]
                before = channels
            layers += [nn.AvgPool2d(2)] if group < 2 else []
        self.features = nn.Sequential(*layers)
        hidden = [nn.Linear(32, 256), Neuron(), nn.Linear(256, 256), Neuron()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(256, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x.repeat(T, 1, 1, 1)).mean((2, 3))
        return self.classifier(x).unflatten(0, (T, -1)).mean(0)


def released(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    net = kind().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.1, 0.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.3, 0.3)
    return net.eval()


def ours(kind: type[nn.Module], **options: Any) -> Network:
    name = "ResNet-20" if kind is ResNet20 else "VGG-16"
    size: dict[str, Any] = {"width": 1 / 4} if kind is ResNet20 else {"width": 1 / 16, "pools": 2}
    activation = options.pop("activation", lambda: LMHT(L, T, theta=THETA))
    return build(name, activation, **(size | {"classes": 5, "steps": T} | options)).double().eval()


@pytest.mark.parametrize("kind", [ResNet20, VGG16])
@pytest.mark.parametrize("current_axis", [0, 1])
def test_the_network_of_the_file(kind: type[nn.Module], current_axis: int) -> None:
    """Logits of the network that the file was saved from, by the forward above."""
    theirs, net = released(kind), ours(kind)
    state = theirs.state_dict()
    if current_axis == 1:
        state = OrderedDict((k, v.transpose(0, 1) if k.endswith("mask") else v) for k, v in state.items())
    import_released(net, state, layers_in_order(net, state), current_axis=current_axis)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(images)
        assert torch.allclose(net(images), expected, atol=1e-12)
    assert expected.std(0).min() > 1e-3
    assert all(module.theta == THETA for module in net.modules() if isinstance(module, LMHT))


def test_order_is_visible() -> None:
    """What the helper found is a mapping of names to read, and to correct."""
    theirs, net = released(ResNet20), ours(ResNet20)
    layers = layers_in_order(net, theirs.state_dict())
    assert layers["conv1"] == "stem.0.0"
    assert layers["blocks.3.downsample.1"] == "body.4.shortcut.1"
    assert layers["blocks.3.act2"] == "body.4.neuron"
    assert layers["fc"] == "head.0"
    assert set(layers) == {key.rpartition(".")[0] for key in theirs.state_dict()}


def without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k != key}


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (lambda s: s | {"act.thresh": torch.ones(1)}, {}, r"no place for act\.thresh; name their modules"),
    (lambda s: s | {"head2.weight": torch.ones(5, 16)}, {}, r"no place for head2\.weight"),
    (lambda s: s | {"epoch": 300}, {}, r"epoch is no tensor, but int; give the state dict alone"),
    (lambda s: without(s, "blocks.0.act1.alpha"), {}, r"nothing for body\.1\.residual\.2\.tgim\.alpha;"),
    (lambda s: s | {"act.mask": torch.ones(T + 1, T + 1)}, {}, r"act\.mask is \[4, 4\], the neuron's is \[3, 3\]"),
    (lambda s: s | {"fc.bias": torch.ones(6)}, {}, r"fc\.bias is \[6\], head\.0\.bias \[5\]"),
    (lambda s: s, {"bn1": "body.1.residual.1"}, r"is a second value for body\.1\.residual\.1\.weight"),
]


@pytest.mark.parametrize(("change", "renamed", "message"), WRONG, ids=range(len(WRONG)))
def test_every_key_is_used_or_named(change: Any, renamed: dict[str, str], message: str) -> None:
    """And what is refused leaves the network as it was."""
    net = ours(ResNet20)
    state = released(ResNet20).state_dict()
    layers = layers_in_order(net, state) | renamed
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        import_released(net, change(dict(state)), layers, current_axis=0)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            lambda: ours(VGG16),
            r"the network has 15 neurons with mask and alpha, the file 19; 1 layers \[4, 4, 3, 3\], the file 6;",
        ),
        (lambda: ours(ResNet20, classes=6), r"0 layers \[5, 16\], the file 1"),
        (lambda: ours(ResNet20, activation=lambda: IF(T)), r"0 neurons with mask and alpha, the file 19"),
    ],
)
def test_another_architecture_is_named(net: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layers_in_order(net(), released(ResNet20).state_dict())


def test_an_order_that_says_nothing_is_refused() -> None:
    state = released(ResNet20).state_dict()
    moved = OrderedDict((k, v) for k, v in state.items() if not k.startswith("bn1."))
    moved.update((k, v) for k, v in state.items() if k.startswith("bn1."))
    moved["odd.weight"] = torch.ones(4)
    with pytest.raises(ValueError, match=r"odd \(weight\) is no layer, neuron, or normalisation"):
        layers_in_order(ours(ResNet20), moved)
    with pytest.raises(ValueError, match="current_axis must be 0 or 1"):
        import_released(ours(ResNet20), state, {}, current_axis=2)  # type: ignore[arg-type]
