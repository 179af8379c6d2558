"""Networks whose modules are not what they seem, checkpoints, what nothing is known of: right, or refused by name."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import prune

from lmht import IF, LMHT, QCFS
from lmht.conversion import replace_modules, to_if, to_lmht
from lmht.energy import count_operations
from lmht.networks import MultiStep, Network, build
from lmht.reparameterize import certify, foretell, reparameterize


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
    network = snn(norm)
    for tool in (reparameterize, lambda net: certify(net, [images()]), lambda net: foretell(net, images())):
        with pytest.raises(ValueError, match=type(norm).__name__):
            tool(network)
    with pytest.raises(ValueError, match=type(norm).__name__):
        to_lmht(small(norm, QCFS(4), QCFS(4), 1), 2, 2)


def test_an_activation_in_two_places_is_converted_in_both() -> None:
    shared = QCFS(4)
    ann = small(nn.BatchNorm2d(4), shared, shared, 1)
    converted = to_lmht(ann, 2, 2)
    assert converted.body[0] is converted.body[3]
    assert isinstance(converted.body[0], LMHT)
    torch.testing.assert_close(converted(images()), ann(images()), rtol=0, atol=1e-12)


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[::2]


def test_where_time_starts_must_be_known() -> None:
    """A module of neurons that is no MultiStep may take anything; as a MultiStep it takes images."""
    network = snn(nn.BatchNorm2d(4))
    inner = nn.Sequential(network.stem, network.body, network.head)
    for tool in (reparameterize, lambda net: certify(net, [images()]), lambda net: count_operations(net, images())):
        with pytest.raises(ValueError, match=r"time axis starts; .*MultiStep\(network, steps=T\)"):
            tool(inner)
    around = MultiStep(inner, 2)
    torch.testing.assert_close(around(images()), network(images()), rtol=0, atol=1e-12)
    counted = [count_operations(net, images()) for net in (around, network)]
    assert list(counted[0].sops.values()) == list(counted[1].sops.values())
    with pytest.raises(ValueError, match="module is a network on images itself, with steps = 2"):
        MultiStep(network, 2)
    with pytest.raises(ValueError, match=r"folded \[T\*N, ...\].* 16 rows; it returned \(8, 1, 8, 8\)"):
        MultiStep(Half(), 2)(images())


def test_frames_enter_a_wrapped_module_one_a_step() -> None:
    network, frames = MultiStep(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 2, frames=True), torch.randn(2, 5, 4)
    torch.testing.assert_close(network(frames), network.module[1](frames).mean(0))
    with pytest.raises(ValueError, match=r"event frames \[T=2, N, ...\], got \(3, 5, 4\)"):
        network(torch.randn(3, 5, 4))


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


def hooked(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, inputs, out: 2 * out)


def replaced(layer: nn.Module) -> None:
    layer.forward = torch.tanh


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (pruned, r"prune\.remove"),
        (nn.utils.weight_norm, "remove_weight_norm"),
        (nn.utils.spectral_norm, "remove_spectral_norm"),
        (nn.utils.parametrizations.weight_norm, "remove_parametrizations"),
        (nn.utils.parametrizations.orthogonal, "remove_parametrizations"),
        (hooked, r"remove them \(handle\.remove"),
        (replaced, "forward of its own"),
        (lambda layer: layer.to("meta"), "has no values"),
    ],
)
def test_layers_that_are_not_what_their_weights_say_are_refused(
    change: Callable[[nn.Module], object], remedy: str
) -> None:
    ann, network = small(nn.BatchNorm2d(4), QCFS(4), QCFS(4), 1), snn(nn.BatchNorm2d(4))
    for net in (ann, network):
        change(net.body[1])
    tools = (lambda: to_lmht(ann, 2, 2), lambda: reparameterize(network), lambda: certify(network, [images()]))
    for tool in (*tools, lambda: foretell(network, images()), lambda: to_if(ann, 2)):
        with pytest.raises(ValueError, match=rf"body\.1 \(.*{remedy}"):
            tool()


def test_a_forward_set_on_an_instance_is_no_change_if_it_is_its_classs() -> None:
    """Lightning Fabric leaves it like that."""
    network = snn(nn.BatchNorm2d(4))
    network.forward = network.forward
    torch.testing.assert_close(reparameterize(network)(images()), network(images()), rtol=0, atol=1e-12)


class Named(nn.Conv2d):
    """A convolution by another name."""


class Standardised(nn.Conv2d):
    """As in published networks: the weights are normalised when used, so scaling them scales nothing."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight / weight.std(), self.bias)


@pytest.mark.parametrize("place", ["first", "between"])
def test_a_subclass_is_its_base_unless_it_computes_something_else(place: str) -> None:
    def network(layer: nn.Module) -> MultiStep:
        layers = [nn.Conv2d(1, 1, 3), LMHT(2, 2, v0=0.5), nn.Conv2d(1, 1, 3), LMHT(2, 2, v0=0.5)]
        layers[0 if place == "first" else 2] = layer
        return MultiStep(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3)), 2).double().eval()

    right = network(Named(1, 1, 3))
    torch.testing.assert_close(reparameterize(right)(images()), right(images()), rtol=0, atol=1e-12)
    for tool in (reparameterize, lambda net: certify(net, [images()])):
        with pytest.raises(ValueError, match=r"conv2d in module\.[02] is not known"):
            tool(network(Standardised(1, 1, 3)))


class Clipped(LMHT):
    def emit(self, x: Tensor) -> Tensor:
        return super().emit(x.clamp(max=1))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            lambda: MultiStep(nn.Sequential(LMHT(2, 2), nn.Flatten(), nn.Linear(64, 3)), 2),
            "module.0 .*sees the image itself",
        ),
        (
            lambda: MultiStep(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), LMHT(2, 2)), 2),
            "layer with weights .*module.2",
        ),
        (
            lambda: small(nn.BatchNorm2d(4), Clipped(2, 2), Clipped(2, 2), 2),
            r"body\.0 \(Clipped\) has dynamics of its own",
        ),
        (lambda: small(nn.BatchNorm2d(4), LMHT(2, 2), QCFS(4), 2), r"body\.3 \(QCFS\).* no neuron"),
        (lambda: small(nn.BatchNorm2d(4), LMHT(2, 2), LMHT(4, 2), 2), "share L and T"),
    ],
)
def test_what_has_no_twin_is_refused_by_name(network: Callable[[], nn.Module], message: str) -> None:
    for tool in (reparameterize, lambda net: certify(net, [images()]), lambda net: foretell(net, images())):
        with pytest.raises(ValueError, match=message):
            tool(network().double())


class Shortcut(nn.Module):
    def __init__(self, two: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 1) if two else nn.Identity()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x) if isinstance(self.two, nn.Conv2d) else x
        return self.one(x) + self.two(x)


def test_every_way_from_the_image_is_cut_once_and_every_way_to_the_logits_mended_once() -> None:
    """Two layers see what a batch normalisation made of the image; a normalisation stands behind the last layer."""

    def network(two: bool) -> Network:
        body = nn.Sequential(LMHT(2, 2, v0=0.5), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        head = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        net = Network(Shortcut(two), body, head, in_channels=1, steps=2, frames=False).double().eval()
        for norm in (net.stem.norm, net.head[1]):
            nn.init.constant_(norm.running_mean, 0.3)
            nn.init.constant_(norm.bias, 0.7)
            nn.init.constant_(norm.weight, 1.3)
        return net

    net = network(True)
    torch.testing.assert_close(reparameterize(net)(images()), net(images()), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="add in stem joins the image itself with a layer's output"):
        reparameterize(network(False))


def test_tied_weights_that_would_need_two_factors_are_refused() -> None:
    layers = nn.Linear(6, 6), LMHT(2, 2), nn.Linear(6, 6), LMHT(2, 2), nn.Linear(6, 6)
    network = MultiStep(nn.Sequential(*layers), 2).double()
    x = torch.randn(4, 6).double()
    layers[2].bias = layers[0].bias
    torch.testing.assert_close(reparameterize(network)(x), network(x), rtol=0, atol=1e-12)
    layers[4].weight = layers[2].weight
    with pytest.raises(ValueError, match=r"weight of module\.4 .* untie"):
        reparameterize(network)


class Theirs(nn.Module):
    """QCFS as it is published, under other names; ``shift`` 0 leaves the half out."""

    def __init__(self, levels: int, shift: float = 0.5) -> None:
        super().__init__()
        self.up, self.t, self.shift = nn.Parameter(torch.tensor([0.75])), levels, shift

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(x / self.up, 0, 1)
        return torch.floor(x * self.t + self.shift) / self.t * self.up


class Leaking(Theirs):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.relu(x - 20 * self.up)


class Centred(Theirs):
    """Elementwise on data of fewer axes."""

    def __init__(self, axes: int) -> None:
        super().__init__(4)
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if x.dim() != self.axes else y - y.mean(1, keepdim=True)


@pytest.mark.parametrize("activation", [Leaking(4), Centred(2), Centred(3), Centred(4)])
def test_what_is_qcfs_near_its_scale_or_on_a_line_only_is_refused(activation: Theirs) -> None:
    with pytest.raises(ValueError, match=r"(Leaking|Centred) is not QCFS"):
        to_lmht(small(nn.BatchNorm2d(4), activation, Theirs(4), 1), 2, 2, activation=Theirs, scale="up")


def test_somebody_elses_qcfs_is_converted_if_it_is_one() -> None:
    ann = small(nn.BatchNorm2d(4), Theirs(4), Theirs(4), 1)
    converted = to_lmht(ann, 2, 2, activation=Theirs, scale="up")
    torch.testing.assert_close(converted(images()), ann(images()), rtol=0, atol=1e-12)
    assert isinstance(to_if(ann, 4, activation=Theirs, scale="up").body[0], IF)
    for activation, scale, message in (
        (Theirs, "t", r"Theirs is not QCFS \(Eq\. 4\) with scale 4"),
        (Theirs, "threshold", r"Theirs\.threshold is not one number; .* scale="),
        (QCFS, "scale", "no QCFS activation to convert; .*activation="),
    ):
        with pytest.raises(ValueError, match=message):
            to_lmht(ann, 2, 2, activation=activation, scale=scale)
    no_class: list[Any] = [None, "QCFS", nn.functional.relu, QCFS(4)]
    for none in no_class:
        with pytest.raises(TypeError, match="activation= takes a class of modules, QCFS or your own, got"):
            to_lmht(ann, 2, 2, activation=none)
    with pytest.raises(ValueError, match=r"Theirs is not QCFS .* 4 levels"):
        to_lmht(small(nn.BatchNorm2d(4), Theirs(4, 0.0), Theirs(4), 1), 2, 2, activation=Theirs, scale="up")
    with pytest.raises(ValueError, match=r"body\.0 \(QCFS\) is another activation than Theirs"):
        to_lmht(small(nn.BatchNorm2d(4), QCFS(4), Theirs(4), 1), 2, 2, activation=Theirs, scale="up")


def test_what_can_not_be_traced_or_returns_something_else_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x + x

    for module, message in ((Branching(), "can't be traced by torch.fx"), (Two(), "must return one tensor")):
        with pytest.raises(ValueError, match=message):
            to_lmht(module, 2, 2)
        with pytest.raises(ValueError, match=message):
            count_operations(module, images())


def test_attention_products_are_listed_as_uncounted() -> None:
    network = build("Transformer-4-384", lambda: IF(2), classes=3, steps=2, width=1 / 16, depth=1, pools=(False, False))
    operations = count_operations(network, torch.randn(1, 3, 8, 8))
    assert operations.uncounted == ["matmul in body.1.attention", "matmul in body.1.attention"]


def test_the_readmes_example_gives_equal_logits() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "to_lmht" in block]
    found: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(example, found)
    ann, snn, hardware, data = (found[name] for name in ("ann", "snn", "hardware", "images"))
    assert not any(module.training for module in (ann, snn, hardware))
    torch.testing.assert_close(snn(data), ann(data), rtol=0, atol=1e-9)
    torch.testing.assert_close(hardware(data), ann(data), rtol=0, atol=1e-9)


def test_a_network_checks_its_neurons_steps_and_layout() -> None:
    """Also those that are put in later: samples must never be taken for time-steps."""
    with pytest.raises(ValueError, match="steps=2"):
        build("ResNet-20", lambda: LMHT(2, 2), classes=10, width=0.1)
    with pytest.raises(ValueError, match="steps=4"):
        build("ResNet-20", lambda: LMHT(2, 4), classes=10, width=0.1, steps=2)
    with pytest.raises(ValueError, match="leave folded=True"):
        build("ResNet-20", lambda: LMHT(2, 2, folded=False), classes=10, width=0.1, steps=2)
    late = build("ResNet-20", nn.ReLU, classes=10, width=0.1)
    replace_modules(late, nn.ReLU, lambda module: LMHT(2, 2))
    with pytest.raises(ValueError, match="steps=2"):
        late(torch.randn(2, 3, 8, 8))


def test_the_weights_of_another_t_are_loaded_as_the_error_says() -> None:
    saved, network = snn(nn.BatchNorm2d(4)).state_dict(), small(nn.BatchNorm2d(4), LMHT(2, 4), LMHT(2, 4), 4)
    weights = {name: value for name, value in saved.items() if "_extra_state" not in name and "tgim" not in name}
    network.load_state_dict(weights, strict=False)
    assert torch.equal(network.stem.weight, saved["stem.weight"])


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
