"""What a user's forward may do between two neurons: the tools are right, by the networks' own outputs in float64, or refuse it."""

import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmht import LMHT, QCFS
from lmht.conversion import to_lmht
from lmht.energy import count_operations
from lmht.fusion import chain
from lmht.kernels import use_backend
from lmht.networks import MultiStep, Network, build
from lmht.reparameterize import certify, foretell, reparameterize
from tests.test_modules import filled

Forward = Callable[[Any, Tensor], Tensor]


class Between(nn.Module):
    """Layer, activation, what the test asks about, layer, activation, layer."""

    def __init__(self, what: Forward, make: Callable[[], nn.Module], features: int = 6) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(features, 6), nn.Linear(6, 3)
        self.one, self.two, self.what = make(), make(), what
        self.p = nn.Parameter(torch.linspace(0.25, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.two(self.second(self.what(self, self.one(self.first(x))))))


def ann(what: Forward, features: int = 6) -> nn.Module:
    return filled(Between(what, lambda: QCFS(4, 1.0), features)).double().eval()


def snn(what: Forward, features: int = 6) -> MultiStep:
    inner = Between(what, lambda: LMHT(2, 2, theta=0.25, v0=0.125), features)
    return MultiStep(filled(inner).double().eval(), 2)


def images(n: int = 8) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(0)).double()


def in_place_on_an_alias(module: Any, x: Tensor) -> Tensor:
    y = module.second(x)
    also = y
    also += x
    return y


REFUSED: dict[str, Forward] = {
    "rows_divide": lambda m, x: x / x.shape[0] * 5,
    "rows_by_size": lambda m, x: x * (5 / x.size(0)),
    "rows_by_numel": lambda m, x: x * x.numel() / 30,
    "rows_added": lambda m, x: x + x.shape[0] * 0.05,
    "no_axes": lambda m, x: x + x.sum(dim=()) * 0.1,
    "rows_under_one": lambda m, x: x + x.view(1, -1, 6).sum(1) * 0.1,
    "pad_in_time": lambda m, x: x + F.pad(x[:, :, None, None], (0, 0, 0, 0, 0, 0, 1, -1))[:, :, 0, 0],
    "alias": in_place_on_an_alias,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_rows_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not known to be applied step by step"):
        to_lmht(ann(REFUSED[name]), 2, 2)
    for tool in (reparameterize, lambda net: certify(net, [images()])):
        with pytest.raises(ValueError, match="is not known to be applied step by step"):
            tool(snn(REFUSED[name]))


def in_place(module: Any, x: Tensor) -> Tensor:
    y = module.second(x)
    y += x
    y *= 0.5
    return y


def remembered(module: Any, x: Tensor) -> Tensor:
    module.feature = x
    return x


RIGHT: dict[str, Forward] = {
    "columns": lambda m, x: x / x.shape[1] * x.shape[-1] + x * x.size(1) ** -0.5,
    "python_sum": lambda m, x: 0 + x + x * 0.5,  # as sum([x, x * 0.5]) does
    "parts": lambda m, x: torch.cat(x.chunk(2, 1), dim=1) + torch.cat(tensors=[x[:, :2], x[:, 2:]], dim=1),
    "keywords": lambda m, x: torch.reshape(F.pad(x, pad=(1, 1)), shape=(x.shape[0], 8))[:, 1:7].reshape(shape=x.shape),
    "alpha": lambda m, x: torch.add(x, m.second(x), alpha=2),
    "in_place": in_place,
    "remembered": remembered,
    "constant": lambda m, x: x * torch.tensor([1.0, -2, 0, 4, 5, 6]).double(),
    "isinstance": lambda m, x: x * m.p if isinstance(x, Tensor) and not isinstance(x, list | tuple) else x[0],
    "is_tensor": lambda m, x: x * m.p if torch.is_tensor(x) else x,
    "rows_in_a_shape": lambda m, x: x.view(x.shape[0], 2, 3).flatten(1).reshape(x.size(0), 6),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_does_not_is_exact(name: str) -> None:
    net, x = ann(RIGHT[name]), images()
    if name in ("parts", "keywords") and torch.__version__ < "2.9":  # torch.fx itself can't: they are refused
        with pytest.raises(ValueError, match=r"can't be traced by torch\.fx"):
            to_lmht(net, 2, 2)
        return
    torch.testing.assert_close(to_lmht(net, 2, 2)(x), net(x), rtol=0, atol=1e-12)
    spiking = snn(RIGHT[name])
    assert max(layer.difference for layer in certify(spiking, [x]).values()) == 0
    torch.testing.assert_close(reparameterize(spiking)(x), spiking(x), rtol=0, atol=1e-12)
    assert set(count_operations(spiking, x).sops) >= {"module.third"}


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x * m.p if type(x) is torch.Tensor else x,
        lambda m, x: x * torch.rand(6).double(),
    ],
    ids=["type", "rand"],
)
def test_another_way_when_traced_is_found_on_data(forward: Forward) -> None:
    net, x = snn(forward), images()
    for tool in (lambda: certify(net, [x]), lambda: foretell(net, x), lambda: count_operations(net, x)):
        with pytest.raises(ValueError, match=r"MultiStep computes something else than its trace|or is drawn at random"):
            tool()


def test_two_threads_may_trace() -> None:
    """torch.fx replaces ``nn.Module.__call__`` meanwhile, and we ``isinstance``: neither may be put back by the other thread."""

    def slow(m: Any, x: Tensor) -> Tensor:
        time.sleep(0.1)
        return x

    def later(net: nn.Module, seconds: float) -> MultiStep:
        time.sleep(seconds)
        return to_lmht(net, 2, 2)

    before, net, x = isinstance, ann(slow), images()
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(later, (net, copy.deepcopy(net)), (0.0, 0.05))
    assert torch.equal(one(x), other(x))
    assert isinstance is before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.to("meta"), "images on the meta device or fake ones give no spikes"),
        (lambda x: x.float(), r"MultiStep takes no images of shape \[8, 6\], torch.float32: .*dtype"),
        (lambda x: x[:, :5], r"MultiStep takes no images of shape \[8, 5\], torch.float64: .*shape"),
    ],
)
def test_batches_that_do_not_fit_are_named(change: Callable[[Tensor], Tensor], message: str) -> None:
    net, x = snn(lambda m, x: x), change(images())
    for tool in (lambda: certify(net, [x]), lambda: foretell(net, x), lambda: count_operations(net, x)):
        with pytest.raises(ValueError, match=message):
            tool()


def test_a_feature_kept_by_a_forward_is_as_it_was() -> None:
    net, x = ann(remembered), images()
    with torch.no_grad():
        net(x)
    feature = net.feature
    assert isinstance(feature, Tensor)
    to_lmht(net, 2, 2)
    assert net.feature is feature
    spiking = snn(remembered)
    count_operations(spiking, x)
    assert "feature" not in vars(spiking.module) or isinstance(spiking.module.feature, Tensor)


def test_a_parameter_beside_the_spikes_is_an_offset() -> None:
    def token(m: Any, x: Tensor) -> Tensor:
        return torch.cat([m.p.expand(x.shape[0], -1)[:, :2], x], 1)

    net, x = ann(token, 8), images()
    torch.testing.assert_close(to_lmht(net, 2, 2)(x), net(x), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="the offset of cat in module can't be cut"):
        reparameterize(snn(token, 8))
    counted = count_operations(snn(token, 8), x)
    assert list(counted.sops) == ["module.third"]
    assert "module.second" in counted.macs  # it sees analogue values, too


def test_a_factor_with_more_axes_multiplies_the_spikes() -> None:
    spiking, x = snn(lambda m, x: (x[:, None] * m.p[:4, None]).flatten(1), 24), images()
    counted = count_operations(spiking, x)
    assert counted.sops["module.second"] == 4 * 6 * counted.spikes["module.one"] > 0


@pytest.mark.parametrize("pool", [F.relu, lambda x: F.relu(x, inplace=True), lambda x: F.max_pool1d(x, 1)])
def test_pooled_negative_spikes_are_not_counted(pool: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"can't count: \w+ in module sees negated spikes"):
        count_operations(snn(lambda m, x: pool(-x)), images())
    counted = count_operations(snn(lambda m, x: pool(x)), images())
    assert counted.sops["module.second"] == 6 * counted.spikes["module.one"] > 0


class Stream(nn.Module):
    """A residual stream that is the output, too."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.n = LMHT(2, 2, theta=0.25, v0=0.125)
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        if self.twice:
            y = self.b(self.n(self.a(x)))
            return y + self.c(y)
        x = self.a(x)
        return x + self.b(self.n(x))


@pytest.mark.parametrize("twice", [False, True])
def test_a_layer_before_the_output_and_before_a_layer_can_not_be_scaled_for_one(twice: bool) -> None:
    with pytest.raises(ValueError, match="sees a layer whose output is also the network's"):
        reparameterize(MultiStep(filled(Stream(twice)).double().eval(), 2))


def test_neurons_in_the_stem_of_a_static_image_are_refused() -> None:
    def net(make: Callable[[], nn.Module], steps: int) -> Network:
        stem, body = (nn.Sequential(nn.Linear(6, 6), make()) for _ in range(2))
        return Network(stem, body, nn.Linear(6, 3), in_channels=1, steps=steps, frames=False)

    message = "neuron stem.1 stands in the stem, which sees a static image once"
    with pytest.raises(ValueError, match=message):
        net(lambda: LMHT(2, 2), 2)
    with pytest.raises(ValueError, match="neuron stem stands in the stem"):
        Network(LMHT(2, 2), nn.Flatten(), nn.Linear(6, 3), in_channels=1, steps=2, frames=False)
    stem = nn.Sequential(nn.Conv2d(1, 2, 1), QCFS(4, 1.0))
    body = nn.Sequential(nn.Conv2d(2, 2, 1), QCFS(4, 1.0), nn.Flatten())
    quantised = Network(stem, body, nn.Linear(8, 3), in_channels=1, steps=1, frames=False)
    with pytest.raises(ValueError, match=message):
        to_lmht(quantised.eval(), 2, 2)


def test_a_network_inside_another_module_is_converted_alone() -> None:
    around = nn.Sequential(nn.Identity(), build("ResNet-20", lambda: QCFS(4), classes=10, width=0.25)).eval()
    with pytest.raises(ValueError, match="1 is a network on images itself"):
        to_lmht(around, 2, 2)


def test_neurons_with_a_forward_of_their_own_have_no_twin() -> None:
    class Double(LMHT):
        def forward(self, x: Tensor, folded: bool | None = None) -> Tensor:
            return 2 * super().forward(x)

    class Called(QCFS):
        def __call__(self, x: Tensor) -> Tensor:
            return 2 * super().__call__(x)

    network = MultiStep(nn.Sequential(nn.Linear(6, 6), Double(2, 2), nn.Linear(6, 3)), 2)
    for tool in (reparameterize, lambda net: certify(net, [images().float()])):
        with pytest.raises(ValueError, match=r"1 \(Double\) has dynamics of its own"):
            tool(network.eval())
    with pytest.raises(ValueError, match="Called is not QCFS"):
        to_lmht(nn.Sequential(nn.Linear(6, 6), Called(4), nn.Linear(6, 3)).eval(), 2, 2)


def test_a_parameter_of_low_precision_elsewhere_costs_no_digit() -> None:
    class Gained(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.gain, self.count = (
                nn.Parameter(torch.zeros((), dtype=torch.bfloat16)),
                nn.Buffer(torch.zeros((), dtype=torch.int)),
            )
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    inner = filled(Between(lambda m, x: x, lambda: QCFS(6, 1.0))).double().eval()
    net, x = Gained(inner).eval(), images(1000)
    torch.testing.assert_close(to_lmht(net, 2, 3)(x), net(x), rtol=0, atol=1e-12)


def test_hooks_of_the_network_itself_are_refused() -> None:
    network = snn(lambda m, x: x)
    network.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    with pytest.raises(ValueError, match="has hooks that may change what it computes"):
        count_operations(network, images())


def test_an_activation_of_a_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one \(QCFS\) is applied to something else than data"):
        to_lmht(ann(lambda m, x: x * m.one(m.p)), 2, 2)


def test_event_frames_keep_their_number() -> None:
    framed = MultiStep(ann(lambda m, x: x), 4, frames=True).eval()
    with pytest.raises(ValueError, match="takes 4 event frames"):
        to_lmht(framed, 2, 2)
    with pytest.raises(ValueError, match="event frames change from step to step"):
        to_lmht(framed, 1, 4)
    assert to_lmht(framed, 1, 4, inexact=True).frames


def test_a_residual_is_added_before_the_only_module_too() -> None:
    act, linear, x, residual = QCFS(4, 1.0), nn.Linear(6, 6), images().float(), torch.ones(8, 6)
    torch.testing.assert_close(chain([act], x, residual), act(x + residual))
    torch.testing.assert_close(chain([nn.Sequential(linear, act)], x, residual), act(linear(x) + residual))


def test_spikes_of_nan_are_not_counted() -> None:
    with use_backend("compiled"), pytest.raises(ValueError, match="images or weights hold NaN or infinite values"):
        count_operations(snn(lambda m, x: x), images() * float("nan"))  # this backend passes NaN on


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_certificates_in_half_precision(dtype: torch.dtype) -> None:
    network = snn(lambda m, x: x).to(dtype)
    assert set(certify(network, [images().to(dtype)])) == {"module.one", "module.two"}


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda net, x: certify(net, x), "certify takes several batches"),
        (lambda net, x: certify(net, [(x, x)]), "got a tuple; of .images, labels. give it the images alone"),
        (lambda net, x: certify(net, [x * float("nan")]), "got one with NaN or infinite values"),
        (lambda net, x: count_operations(net, x * float("inf")), "input holds .* NaN"),
        (lambda net, x: count_operations(net, [x]), "takes a batch of at least one image, got list"),
        (lambda net, x: count_operations(net, x[:, :0]), r"takes a batch of at least one image, got \(8, 0\)"),
        (lambda net, x: to_lmht(net, 0, 2), "levels"),
        (lambda net, x: to_lmht(cast(Any, None), 2, 2), "must be a torch.nn.Module, got None"),
    ],
)
def test_arguments_that_are_none_are_named(work: Callable[[MultiStep, Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        work(snn(lambda m, x: x), images())
