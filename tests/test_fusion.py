"""Normalisation, residual sum and activation in one pass: what they are apart, and when they are left apart."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmht import IF, LIF, LMHT, MHT, QCFS, fusion, kernels
from lmht.kernels import compiled
from lmht.networks import build

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "LM-HT T=2": lambda: LMHT(2, 2),
    "LM-HT T=20": lambda: LMHT(1, 20),
    "IF T=4": lambda: IF(4),
    "M-HT T=2": lambda: MHT(3, 2, leak=0.5, temporal_gradient=False),
    "QCFS": lambda: QCFS(4, scale=2.0),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
CASES = [(name, torch.float64) for name in ACTIVATIONS]  # a kernel is compiled for each
CASES += [(name, dtype) for name in ("LM-HT T=2", "QCFS") for dtype in (torch.float32, torch.bfloat16)]


@pytest.fixture(autouse=True)
def on_compiled() -> Iterator[None]:
    if not compiled.available():
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    with kernels.use_backend("compiled"):
        yield


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(*shape, dtype=torch.float64).mul(2).add(3).to(dtype)
    return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x


def apart(norm: nn.Module, activation: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    y = norm(x)
    return activation(y if residual is None else y + residual)


def run(
    pair: Any, modules: tuple[nn.Module, nn.Module], x: Tensor, residual: Tensor | None, grad: Tensor
) -> dict[str, Any]:
    """Output, every gradient and every buffer, by name, of copies of the modules."""
    norm, activation = copy.deepcopy(modules)
    x = x.detach().clone().requires_grad_()
    residual = residual if residual is None else residual.detach().clone().requires_grad_()
    out = pair(norm, activation, x, residual)
    out.backward(grad)
    learned = {name: one.grad for name, one in [*norm.named_parameters(), *activation.named_parameters()]}
    gradients = {"dx": x.grad, "dresidual": None if residual is None else residual.grad, **learned}
    return {"out": out.detach(), **gradients, **dict(norm.named_buffers())}


def test_a_second_derivative_is_refused() -> None:
    norm, activation = nn.BatchNorm2d(16), QCFS(4)
    x = images(3, 16, 5, 7).requires_grad_()
    assert fusion.fits(norm, activation, x, None)
    (gradient,) = torch.autograd.grad(fusion.normalized(norm, activation, x).sum(), x, create_graph=True)
    for asked in (x, norm.weight, norm.bias, activation.scale):
        with pytest.raises(RuntimeError, match="once_differentiable"):
            torch.autograd.grad(gradient.sum() + asked.sum(), asked, retain_graph=True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_equal(name: str, dtype: torch.dtype, training: bool) -> None:
    """With and without a residual, learned scales, running averages and cumulative ones; widths that no vector divides."""
    activation = ACTIVATIONS[name]()
    steps, wide = getattr(activation, "steps", 1), torch.float64 if dtype == torch.float64 else torch.float32
    cases: list[tuple[int, bool, dict[str, Any]]] = [
        (16, False, {}),
        (3, True, {"affine": False}),
        (40, True, {"momentum": None}),
    ]
    for channels, summed, options in cases:
        norm = nn.BatchNorm2d(channels, **options).to(wide).train(training)
        for one in norm.parameters():
            nn.init.normal_(one)
        norm.running_mean += 1
        x = images(3 * steps, channels, 5, 7, dtype=dtype)
        grad, residual = torch.randn_like(x), torch.randn_like(x) if summed else None
        modules = (norm, activation.to(wide))
        assert fusion.fits(*modules, x, residual)
        want, got = (run(pair, modules, x, residual, grad) for pair in (apart, fusion.normalized))
        same = (got["out"] == want["out"]).double().mean()
        assert same == 1 if dtype == torch.float64 else same > 0.999  # a spike may fall on the other side of a tie
        for what in want.keys() - {"out"}:
            if want[what] is None:
                assert got[what] is None
                continue
            assert (got[what].dtype, got[what].shape) == (want[what].dtype, want[what].shape)
            largest = want[what].double().abs().max().clamp_min(1e-30)
            off = float((got[what].double() - want[what].double()).abs().max() / largest)
            bad = off > TOLERANCE[dtype] if same == 1 else False  # a flipped spike moves the gradients, too
            assert not bad, f"{what}, {channels} channels: off by {off:.1e}"


def test_a_lazy_negation() -> None:
    """What torch keeps as a flag on memory that holds the opposite."""
    modules = (nn.BatchNorm2d(16).double(), LMHT(2, 2).double())
    x, grad = images(4, 16, 5, 7, dtype=torch.float64), torch.randn(4, 16, 5, 7, dtype=torch.float64)
    negative, negated = torch._neg_view(-x), torch._neg_view(-grad)
    assert torch.equal(fusion.normalized(*modules, negative), fusion.normalized(*modules, x))
    assert torch.equal(fusion.normalized(*modules, x, negative), fusion.normalized(*modules, x, x))
    want, got = (run(fusion.normalized, modules, x, None, one) for one in (grad, negated))
    assert all(torch.equal(want[name], got[name]) for name in want if want[name] is not None)


def test_features() -> None:
    """[N, C], as after a linear layer."""
    modules = (nn.BatchNorm1d(24).double(), LMHT(2, 2).double())
    x = torch.randn(64, 24, dtype=torch.float64)
    assert fusion.fits(*modules, x, None)
    grad = torch.randn_like(x)
    want, got = (run(pair, modules, x, None, grad) for pair in (apart, fusion.normalized))
    assert torch.equal(want["out"], got["out"])
    torch.testing.assert_close(got["dx"], want["dx"], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("architecture", ["ResNet-20", "MS-ResNet-18", "VGG-13"])
def test_training(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    """Ten updates of a network fused and apart: the same weights and running statistics to 1e-12, and pairs were fused."""
    fused: list[int] = []
    fits = fusion.fits

    def counted(*arguments: Any) -> bool:
        fused.append(fits(*arguments))
        return bool(fused[-1])

    def trained() -> dict[str, Tensor]:
        torch.manual_seed(1)
        network = build(architecture, lambda: LMHT(2, 2), classes=10, steps=2, width=0.125).double()
        network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
        for _ in range(10):
            x, y = images(8, 3, 16, 16, dtype=torch.float64), torch.randint(10, (8,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        return network.state_dict()

    monkeypatch.setattr(fusion, "fits", counted)
    got = trained()
    assert sum(fused) >= 0.8 * len(fused) > 0
    monkeypatch.setattr(fusion, "fits", lambda *_: False)
    want = trained()
    for name, value in want.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same statistics (torch's depend on it) any number of threads gives the same bits."""
    monkeypatch.setattr(fusion, "statistics", lambda norm, x: (torch.full((24,), 3.0), torch.full((24,), 4.0)))
    modules = (nn.BatchNorm2d(24), LMHT(2, 2))
    x = images(32, 24, 16, 16)
    grad, before, found = torch.randn_like(x), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(fusion.normalized, modules, x, torch.ones_like(x), grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(value, other[name]), name


class Doubling(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_left_apart() -> None:
    """What the fused pass would not see, or do otherwise, runs in the modules; a hook is called, a wrong input is their error."""
    x, neuron = images(8, 16, 4, 4), LMHT(2, 2)
    norm = nn.BatchNorm2d(16)
    assert fusion.fits(norm, neuron, x, None)
    hooked, called = nn.BatchNorm2d(16), []
    hooked.register_forward_hook(lambda *_: called.append(1))
    replaced = nn.BatchNorm2d(16)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    others = [nn.GroupNorm(4, 16), nn.InstanceNorm2d(16), Doubling(16), hooked, replaced, nn.BatchNorm2d(16).double()]
    # of these the kernels would read what does not belong to them, or is not so
    longer, strided, negated = nn.BatchNorm2d(16), nn.BatchNorm2d(16), nn.BatchNorm2d(16)
    longer.weight, strided.bias = nn.Parameter(torch.ones(17)), nn.Parameter(torch.ones(32)[::2])
    negated.running_mean = torch._neg_view(torch.ones(16))
    for other in (*others, longer, strided, negated, nn.BatchNorm2d(16, device="meta")):
        assert not fusion.fits(other, neuron, x, None), other
    fusion.normalized(hooked, neuron, x)
    assert called
    every = nn.modules.module
    for register in (
        every.register_module_forward_pre_hook,
        every.register_module_forward_hook,
        every.register_module_full_backward_pre_hook,
        every.register_module_full_backward_hook,
    ):
        with register(lambda *_: None):
            assert not fusion.fits(norm, neuron, x, None), register
    assert fusion.fits(norm, neuron, x, None)
    for activation in (nn.ReLU(), LMHT(2, 2, folded=False), LMHT(2, 3)):
        assert not fusion.fits(norm, activation, x, None)
    assert not fusion.fits(norm, neuron, x.contiguous(), None)
    for residual in (x.contiguous(), x[:1], x.double()):
        assert not fusion.fits(norm, neuron, x, residual)
    assert not fusion.fits(norm, neuron, x.to("meta"), None)
    with kernels.use_backend("eager"):
        assert not fusion.fits(norm, neuron, x, None)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fusion.normalized(nn.BatchNorm1d(16), QCFS(4), torch.randn(1, 16))
    traced = torch.fx.symbolic_trace(fusion.Sequential(nn.Conv2d(3, 16, 1), norm, nn.ReLU()))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1", "2"]


def test_refusals() -> None:
    """A wrong parameter is refused as by the modules."""
    x, norm = images(8, 16, 4, 4), nn.BatchNorm2d(16)
    qcfs, neuron = QCFS(4), LMHT(2, 2)
    with torch.no_grad():
        qcfs.scale.fill_(-1)
    neuron.theta = 0.0
    for activation in (qcfs, neuron):
        said = []
        for pair in (apart, fusion.normalized):
            with pytest.raises(ValueError, match=r"scale must|theta must") as error:
                pair(copy.deepcopy(norm), activation, x)
            said.append(str(error.value))
        assert said[0] == said[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_leak_is_not_rounded_to_halves(dtype: torch.dtype) -> None:
    x = images(64, 16, 16, 16, dtype=dtype)

    class Number(nn.Module):
        def forward(self) -> tuple[Tensor, float]:
            return torch.eye(8), 0.9

    with_number = LMHT(1, 8)
    with_number.tgim = Number()
    for neuron in (LIF(8, leak=0.9), with_number):
        norm = nn.BatchNorm2d(16)
        assert fusion.fits(norm, neuron, x, None)
        assert torch.equal(fusion.normalized(norm, neuron, x), apart(copy.deepcopy(norm), neuron, x))


def test_what_somebody_made_learnable_or_replaced_is_left_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    x, norm = images(8, 16, 4, 4), nn.BatchNorm2d(16)
    learnt: Any = nn.Parameter(torch.tensor(0.5))
    lif, mht, replaced = LIF(2), MHT(2, 2), LMHT(2, 2)
    del lif.leak, mht.v0
    lif.leak, mht.v0 = learnt, learnt
    monkeypatch.setattr(replaced, "emit", torch.relu)
    for neuron in (lif, mht, replaced):
        assert not fusion.fits(norm, neuron, x, None)


def test_names() -> None:
    """A fused network's modules and state are those of the modules one by one."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), LIF(2)]
    assert list(fusion.Sequential(*layers).state_dict()) == list(nn.Sequential(*layers).state_dict())
