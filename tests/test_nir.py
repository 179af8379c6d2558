"""NIR files of our networks, executed by nirtorch with snnTorch's integrator and spike function: the same spikes, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmht import IF, LIF, LMHT, MHT, QCFS, FixedTGIM, FreeTGIM
from lmht.conversion import to_if
from lmht.networks import MultiStep, build
from lmht.reparameterize import reparameterize
from tests.dyadic import dyadic_images, make_dyadic

pytest.importorskip("nir", reason="nir is not installed; run tox -e interop")
pytest.importorskip("nirtorch", reason="nirtorch is not installed; run tox -e interop")
pytest.importorskip("snntorch", reason="snntorch is not installed; run tox -e interop")
import nir
import nirtorch
import snntorch

from lmht.interop.nir import to_nir

T = 4


class Integrator(nn.Module):
    def __init__(self, node: nir.I) -> None:
        super().__init__()
        assert (node.r == 1).all()
        self.leaky = snntorch.Leaky(beta=1.0, reset_mechanism="none")

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _, mem = self.leaky(x, torch.zeros_like(x) if state is None else state)
        return mem, mem


class Above(nn.Module):
    def __init__(self, node: nir.Threshold) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.from_numpy(node.threshold))

    def forward(self, x: Tensor) -> Tensor:
        return snntorch.surrogate.heaviside()(x - self.threshold).to(x.dtype)


class Times(nn.Module):
    def __init__(self, node: nir.Scale) -> None:
        super().__init__()
        self.register_buffer("scale", torch.from_numpy(node.scale))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def affine(node: nir.Affine) -> nn.Linear:
    layer = nn.Linear(node.weight.shape[1], node.weight.shape[0])  # nirtorch's own mapping loses the bias
    layer.load_state_dict({"weight": torch.from_numpy(node.weight), "bias": torch.from_numpy(node.bias)})
    return layer


def flatten(node: nir.Flatten) -> nn.Flatten:
    return nn.Flatten(node.start_dim + 1)  # a batch axis is before NIR's


MAP = {nir.I: Integrator, nir.Threshold: Above, nir.Scale: Times, nir.Affine: affine, nir.Flatten: flatten}


def executed(path: Path, frames: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs and spikes of every step, ``[T, N, ...]``."""
    simulator = nirtorch.nir_to_torch(str(path), MAP, dtype=frames.dtype)
    spikes: dict[str, list[Tensor]] = {}
    for name, module in simulator.named_modules():
        if isinstance(module, Above):
            module.register_forward_hook(lambda m, i, out, name=name: spikes.setdefault(name, []).append(out))
    outs, state = [], None
    with torch.no_grad():
        for frame in frames:
            out, state = simulator(frame, state)
            outs.append(out)
    return torch.stack(outs), {name: torch.stack(trains) for name, trains in spikes.items()}


def same_in_the_simulator(net: MultiStep, data: Tensor, path: Path) -> dict[str, Tensor]:
    """Write, execute, compare logits and spikes of every step; returns the spikes."""
    nir.write(path, to_nir(net, data))
    expected: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        if isinstance(module, LMHT | MHT):
            module.register_forward_hook(
                lambda m, i, out, name=name: expected.update({f"{name}.spikes".replace(".", "_"): out / m.theta})
            )
    with torch.no_grad():
        logits = net.step_logits(data)
    frames = data if net.frames else data.expand(net.steps, *data.shape)
    outs, spikes = executed(path, frames)
    assert torch.equal(outs, logits)
    assert spikes.keys() == expected.keys()
    for name, train in spikes.items():
        assert torch.equal(train, expected[name].unflatten(0, (net.steps, -1))), name
    total = sum(float(train.sum()) for train in spikes.values())
    assert 0 < total < sum(train.numel() for train in spikes.values())
    return spikes


@pytest.mark.parametrize(
    ("architecture", "theta", "v0"),
    [("ResNet-20", 1.0, 0.0), ("VGG-13", 0.5, 0.25), ("MS-ResNet-18", 1.0, -0.5), ("ResNet-19", 1.0, 0.5)],
)
def test_the_same_spikes(architecture: str, theta: float, v0: float, tmp_path: Path) -> None:
    """Ties, residual sums, folded batch normalisation, pools, v(0): on dyadic numbers, step by step."""
    options: dict[str, Any] = {"width": 1 / 16, "pools": 2} if architecture == "VGG-13" else {"width": 1 / 8}
    net = make_dyadic(build(architecture, lambda: IF(T, theta=theta, v0=v0), classes=5, steps=T, **options))
    same_in_the_simulator(net, dyadic_images(2, 3, 8, 8), tmp_path / "net.nir")


def test_reparameterised(tmp_path: Path) -> None:
    """One level and the identity reparameterised: LMHT(1, T) with a fixed T-GIM; event frames, float64."""
    net = build(
        "ResNet-20",
        lambda: LMHT(1, T, tgim=FreeTGIM(T, "identity"), v0=0.5),
        classes=5, steps=T, width=1 / 8, in_channels=2, frames=True,
    )  # fmt: skip
    twin = reparameterize(make_dyadic(net.double()))
    assert isinstance(twin.get_submodule("body.0").tgim, FixedTGIM)
    same_in_the_simulator(twin, dyadic_images(T, 2, 2, 8, 8).double(), tmp_path / "twin.nir")


def test_converted_and_random(tmp_path: Path) -> None:
    """A quantised ANN as IF network over T steps, with nothing dyadic: in float64 rounding decides no spike here."""
    torch.manual_seed(0)
    ann = build("VGG-16", lambda: QCFS(4, scale=1.7), classes=5, width=1 / 16, pools=2).double().eval()
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    net, data = to_if(ann, T), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    path = tmp_path / "vgg.nir"
    nir.write(path, to_nir(net, data))
    outs, _ = executed(path, data.expand(T, *data.shape))
    with torch.no_grad():
        assert torch.allclose(outs, net.step_logits(data), atol=1e-9)


def one(neuron: nn.Module, *before: nn.Module) -> MultiStep:
    parts = before or (nn.Conv2d(3, 4, 3),)
    return MultiStep(nn.Sequential(*parts, neuron, nn.Flatten(), nn.Linear(4 * 36, 5)), steps=neuron.steps)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.neuron = nn.Conv2d(3, 3, 3, padding=1), IF(T)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.neuron(x + x)


REFUSED = [
    (one(MHT(2, T)), r"module\.1 \(MHT\) has L = 2 levels, a NIR neuron one"),
    (one(LMHT(1, T)), r"module\.1 \(LMHT\): its T-GIM is not the identity"),
    (reparameterize(one(MHT(2, T))), r"module\.1 \(LMHT\): its T-GIM is not the identity"),
    (one(LIF(T, leak=0.5)), r"module\.1 \(LIF\) has a leak other than 1"),
    (one(IF(T), nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 1)), r"module\.1 \(MaxPool2d\) has no counterpart in NIR"),
    (one(IF(T), nn.Conv2d(3, 4, 1), nn.AvgPool2d(3, 1, ceil_mode=True)), r"\(AvgPool2d\) has no counterpart in NIR"),
    (one(IF(T), nn.Conv2d(3, 4, 5, padding=1, padding_mode="circular")), r"module\.0 .* pads with circular"),
    (one(IF(T), nn.Conv2d(3, 4, 1), nn.AvgPool2d(3, 1), nn.BatchNorm2d(4)), r"module\.2 \(BatchNorm2d\) can't be folded"),
    (MultiStep(Twice(), steps=T), r"module\.neuron\.v sees the same value twice"),
    (one(IF(T)).half(), r"needs one dtype, float32 or float64, got \['torch.float16'\]"),
    (nn.Conv2d(3, 4, 3), r"Conv2d does not say where the time axis starts"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_nir_does_not_have_is_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_nir(network, torch.zeros(1, 3, 8, 8))


def test_foreign_neurons_are_refused() -> None:
    from lmht.interop.snntorch import FromSnnTorch

    net = one(FromSnnTorch(snntorch.Leaky(0.9, init_hidden=True), T))
    with pytest.raises(ValueError, match=r"module\.1 \(FromSnnTorch\) has dynamics of its own"):
        to_nir(net, torch.zeros(1, 3, 8, 8))
