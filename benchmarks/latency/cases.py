"""What is measured: the neuron by (L, T), dtype and size; the paper's networks as ANN and SNN; the check before each figure."""

import functools
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.data.images import TOGETHER
from benchmarks.data.transforms import CifarEach
from benchmarks.latency.measure import Contenders
from benchmarks.run.evaluate import predict
from lmht import IF, LMHT, QCFS, functional, kernels
from lmht.kernels import compiled
from lmht.networks import ARCHITECTURES, Activation, MultiStep, build
from lmht.reparameterize import reparameterize

GRID = (1, 2, 4, 8)  # both L and T
NEURON = ("fused", "fused-dx", "naive", "floor", "spikingjelly")  # fused-dx: without the gradients of Omega and lambda
NETWORK = ("relu", "qcfs", "if", "lmht", "reparameterised", "lmht-naive", "spikingjelly-if", "spikingjelly-ilif")
STEP = ("relu", "qcfs", "lmht", "lmht-T4", "lmht-evaluated", "spikingjelly-ilif", "augmentation")  # lmht: at T = 2
CHECKED = (10_007, 1 << 14)  # neurons: no multiple of a vector or a block, and one: Triton generates two kernels
GROUPS = {  # of operators, for where the time goes; inner names first
    "normalisation and neuron backward": ("_NormalizedBackward",),
    "normalisation and neuron forward": ("_Normalized",),
    "neuron backward": ("_FireBackward", "_QcfsBackward"),
    "neuron forward": ("_Fire", "_Qcfs"),
    "convolution backward": ("convolution_backward",),
    "convolution forward": ("convolution",),
    "normalisation backward": ("batch_norm_backward",),
    "normalisation forward": ("batch_norm",),
    "ReLU": ("aten::relu", "aten::clamp_min", "threshold_backward"),
    "residual sum, repeat": ("aten::add", "aten::cat"),
    "optimiser": ("Optimizer.step", "aten::_foreach", "aten::_fused"),
}
Mode = Literal["forward", "forward+backward", "inference", "training step"]
MODES: tuple[Mode, Mode] = ("forward", "forward+backward")
NETWORK_MODES: tuple[Mode, Mode] = ("inference", "training step")


@dataclass(frozen=True)
class NeuronCase:
    """LM-HT with ``neurons`` neurons over T steps: ``x [T, neurons]``, Omega and lambda trained."""

    mode: Mode
    levels: int
    steps: int
    dtype: torch.dtype
    neurons: int
    device: str
    seconds: float = 0.5

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"neuron-{self.mode}-L{self.levels}-T{self.steps}-{dtype}-N{self.neurons}"

    @property
    def bytes(self) -> int:
        """Of the input."""
        return self.steps * self.neurons * self.dtype.itemsize

    @property
    def describe(self) -> dict[str, Any]:
        dtype = str(self.dtype).removeprefix("torch.")
        passes = 2 if self.mode == "forward" else 5  # forward 1 read, 1 write; backward 2 reads, 1 write
        return {"kind": "neuron", "mode": self.mode, "L": self.levels, "T": self.steps, "dtype": dtype} | {
            "N": self.neurons,
            "input_bytes": self.bytes,
            "moved_bytes": passes * self.bytes,
            "backend": fused_backend(self.device),
        }

    @property
    def names(self) -> list[str]:
        return [name for name in NEURON if (name, self.mode) != ("fused-dx", "forward")]

    def contenders(self) -> Contenders:
        torch.manual_seed(0)
        options: Any = {"device": self.device}
        shape = (self.steps, self.neurons // 1024, 32, 32)
        spread = self.levels / 2  # potentials of all levels, below and above
        x = (torch.randn(shape, **options) * spread + spread / 2).to(self.dtype)
        grad = torch.randn(shape, **options).to(self.dtype)
        omega = torch.rand(self.steps, self.steps, **options) * 2 / self.steps
        leak = torch.tensor(0.9, **options)
        arguments: dict[str, Any] = {"levels": self.levels, "theta": 1.0, "v0": 0.5}
        trained = (x, omega, leak)
        if self.mode == "forward+backward":
            for tensor in trained:
                tensor.requires_grad_()

        def run(neuron: Callable[..., Tensor], *inputs: Tensor, **arguments: Any) -> Callable[[], object]:
            if self.mode == "forward":
                return torch.no_grad()(lambda: neuron(inputs[0], **arguments))
            return lambda: torch.autograd.grad(neuron(inputs[0], **arguments), inputs, grad)

        def fused(x: Tensor, **arguments: Any) -> Tensor:
            with kernels.use_backend(fused_backend(self.device)):
                return kernels.lmht(x, **arguments)

        def floor() -> object:
            with torch.no_grad():
                out = x.clone()
                return out if self.mode == "forward" else (out, torch.add(x, grad))

        found: Contenders = {
            "fused": run(fused, *trained, omega=omega, leak=leak, **arguments),
            "naive": run(functional.lmht, *trained, omega=omega, leak=leak, **arguments),
            "floor": floor,
        }
        if self.mode == "forward+backward":
            fixed = {"omega": omega.detach(), "leak": leak.detach()}
            found["fused-dx"] = run(fused, x, **fixed, **arguments)
        if spikingjelly():
            found["spikingjelly"] = run(Jelly(self.levels, self.steps, folded=False).to(self.device), x)
        return found

    def refused(self) -> dict[str, str]:
        """Contenders that may not be timed: their check is red."""
        reason = check("lmht", self.levels, self.steps, self.dtype, self.device)
        return {name: reason for name in ("fused", "fused-dx") if reason}


@dataclass(frozen=True)
class NetworkCase:
    """An architecture at (L, T) and its relatives, on a batch of random images; a training step is forward, backward and SGD."""

    architecture: str
    mode: Mode
    batch: int
    size: int
    device: str
    width: float = 1.0
    levels: int = 2
    steps: int = 2
    seconds: float = 3.0
    profiled: bool = False
    dtype: torch.dtype = torch.float32  # bfloat16: autocast

    def __str__(self) -> str:
        return f"network-{self.architecture}-{self.mode}-L{self.levels}-T{self.steps}".replace(" ", "-")

    @property
    def describe(self) -> dict[str, Any]:
        return {"kind": "network", "mode": self.mode, "L": self.levels, "T": self.steps} | {
            "dtype": "float32" if self.dtype == torch.float32 else "bfloat16 (autocast)",
            "architecture": self.architecture,
            "batch": self.batch,
            "size": self.size,
            "width": self.width,
            "backend": fused_backend(self.device),
        }

    @property
    def names(self) -> list[str]:
        """Of the contenders; a reparameterised network is made from a trained one, for inference."""
        return [name for name in NETWORK if (name, self.mode) != ("reparameterised", "training step")]

    def network(self, name: str) -> MultiStep:
        torch.manual_seed(0)
        one = self.levels * self.steps  # steps of a one-level neuron
        known: dict[str, tuple[Activation, int]] = {
            "relu": (nn.ReLU, 1),
            "qcfs": (lambda: QCFS(one), 1),
            "lmht-T4": (lambda: LMHT(self.levels, 4), 4),
            "if": (lambda: IF(one), one),
            "spikingjelly-if": (lambda: Jelly(1, one), one),
            "spikingjelly-ilif": (lambda: Jelly(self.levels, self.steps), self.steps),
        }
        activation, steps = known.get(name, (lambda: LMHT(self.levels, self.steps), self.steps))
        network: MultiStep = build(self.architecture, activation, classes=10, steps=steps, width=self.width)
        if name == "reparameterised":
            # attention and max-pools take as long in a twin that differs
            network = reparameterize(network, inexact=True)
        network = network.to(self.device).to(memory_format=torch.channels_last)
        return network.train(self.mode == "training step")

    def contenders(self) -> Contenders:
        torch.manual_seed(0)
        images = torch.randn(self.batch, 3, self.size, self.size, device=self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (self.batch,), device=self.device)
        names = [name for name in self.names if "spikingjelly" not in name or spikingjelly()]
        return {name: self.call(name, images, labels) for name in names}

    def call(self, name: str, images: Tensor, labels: Tensor) -> Callable[[], object]:
        if name == "augmentation":  # of as many images as a loader augments at once
            raw = torch.randint(256, (TOGETHER, 3, self.size, self.size), dtype=torch.uint8, device=self.device)
            return functools.partial(CifarEach("cifar100", augment=True), raw)
        network = self.network(name)
        backend = "eager" if name == "lmht-naive" else "auto"
        autocast = functools.partial(torch.autocast, self.device, torch.bfloat16, enabled=self.dtype != torch.float32)

        @torch.no_grad()
        def inference() -> Tensor:
            with kernels.use_backend(backend), autocast():
                return network(images)

        optimiser = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True)

        def training() -> None:
            with kernels.use_backend(backend):
                with autocast():
                    loss = nn.functional.cross_entropy(network(images), labels)
                loss.backward()
                optimiser.step()
                optimiser.zero_grad()

        def evaluation() -> None:
            with kernels.use_backend(backend), autocast():
                predict(network, [(images, labels)], images.device)

        if name == "lmht-evaluated":
            return evaluation
        return training if self.mode == "training step" else inference

    def refused(self) -> dict[str, str]:
        one = self.levels * self.steps
        reasons = {
            "qcfs": check("qcfs", one, 1, self.dtype, self.device),
            "if": check("mht", 1, one, self.dtype, self.device),
            "lmht": check("lmht", self.levels, self.steps, self.dtype, self.device),
            "reparameterised": check("lmht", 1, one, self.dtype, self.device),
        }
        return {name: reason for name, reason in reasons.items() if reason}


@dataclass(frozen=True)
class StepCase(NetworkCase):
    """What a user waits for: a network's whole step on each activation, T = 2 and T = 4 in one run with the ANN."""

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"step-{self.architecture}-{self.mode}-{dtype}".replace(" ", "-")

    @property
    def describe(self) -> dict[str, Any]:
        return super().describe | {"kind": "step", "normalised": normalised(self)}

    @property
    def names(self) -> list[str]:
        other = "lmht-evaluated" if self.mode == "training step" else "augmentation"
        return [name for name in STEP if name != other]

    def refused(self) -> dict[str, str]:
        reasons = {
            "qcfs": check("qcfs", self.levels * self.steps, 1, self.dtype, self.device),
            "lmht": check("lmht", self.levels, self.steps, self.dtype, self.device),
            "lmht-T4": check("lmht", self.levels, 4, self.dtype, self.device),
        }
        reasons["lmht-evaluated"] = reasons["lmht"]
        return {name: reason for name, reason in reasons.items() if reason and name in self.names}


@functools.cache
def normalised(case: StepCase) -> int:
    """Elements of a batch that pass a batch normalisation in one time-step, over all layers."""
    found: list[int] = []
    network = build(case.architecture, nn.ReLU, classes=10, width=case.width).to("meta")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _module, _inputs, out: found.append(out.numel()))
    network(torch.empty(case.batch, 3, case.size, case.size, device="meta"))
    return sum(found)


Case = NeuronCase | NetworkCase


class Jelly(nn.Module):
    """SpikingJelly's neuron on the backend it chooses: ``IFNode`` at L = 1, else ``ILIFNode``. No T-GIM, spikes of height 1."""

    def __init__(self, levels: int, steps: int, folded: bool = True) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron, surrogate

        self.steps, self.folded = steps, folded
        self.node = (
            neuron.IFNode(v_reset=None, step_mode="m")
            if levels == 1
            else neuron.ILIFNode(surrogate_function=surrogate.MultiLevelSpikeCount(levels), step_mode="m")
        )

    def forward(self, x: Tensor) -> Tensor:
        self.node.reset()
        return self.node(x.unflatten(0, (self.steps, -1))).flatten(0, 1) if self.folded else self.node(x)


@functools.cache
def spikingjelly() -> str:
    """Its version, or nothing."""
    try:
        return importlib.metadata.version("spikingjelly")
    except importlib.metadata.PackageNotFoundError:
        return ""


def fused_backend(device: str) -> str:
    if device != "cpu":
        return "triton"
    return "compiled" if compiled.available() else "eager"


@functools.cache
def check(neuron: Literal["lmht", "mht", "qcfs"], levels: int, steps: int, dtype: torch.dtype, device: str) -> str:
    """Why the fused backend is not to be timed: empty if outputs and gradients equal the naive reference's in float64.

    Inputs are dyadic and small, so that float32 sums are exact too; the reference is rounded once to the dtype that is measured.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for size in CHECKED:
        inputs = dyadic(neuron, levels, steps, size, device)
        try:
            got = results(neuron, levels, inputs, (dtype, compute, compute), fused_backend(device))
        except Exception as error:  # whatever a backend raises: it is not to be timed, and this says why
            return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
        want = results(neuron, levels, inputs, (torch.float64,) * 3, "eager")
        for name, a, b in zip(("outputs", "dx", "domega or dscale", "dleak"), got, want, strict=False):
            if not torch.equal(a, b.to(a.dtype)):
                off = (a.double() - b).abs().max().item()
                return f"{name} differ from the reference by {off:.3g} at L = {levels}, T = {steps}, {dtype}"
    return ""


def dyadic(neuron: str, levels: int, steps: int, size: int, device: str) -> list[Tensor]:
    """The incoming gradient, then x and what else is trained: multiples of 1/4 in float64."""
    generator = torch.Generator().manual_seed(levels * 100 + steps)

    def multiples(*shape: int, most: int) -> Tensor:
        return (torch.randint(-most, most + 1, shape, generator=generator) / 4).to(device, torch.float64)

    grad, x = multiples(steps, size, most=4), multiples(steps, size, most=8)
    leak = torch.ones(steps, 1, dtype=torch.float64, device=device)
    leak[0] = leak[-1] = 0.5  # each halving costs the sums a bit
    if neuron == "qcfs":
        return [grad, x, torch.tensor(2.0, dtype=torch.float64, device=device)]
    return [grad, x, multiples(steps, steps, most=2), leak] if neuron == "lmht" else [grad, x]


def results(
    neuron: str, levels: int, inputs: list[Tensor], dtypes: tuple[torch.dtype, ...], backend: str
) -> list[Tensor]:
    """Output and gradients of a neuron in the given dtypes."""
    values = [value.to(dtype).requires_grad_() for value, dtype in zip(inputs[1:], dtypes, strict=False)]
    arguments: dict[str, Any] = {"levels": levels, "theta": 0.75, "v0": 0.25}
    with kernels.use_backend(backend):
        if neuron == "qcfs":
            out = kernels.qcfs(values[0], levels=levels, scale=values[1])
        elif neuron == "lmht":
            out = kernels.lmht(values[0], omega=values[1], leak=values[2], **arguments)
        else:
            out = kernels.mht(values[0], **arguments)
    return [out.detach(), *torch.autograd.grad(out, values, inputs[0].to(out.dtype))]


def cases(device: str, quick: bool) -> list[Case]:
    """All cases of a device, small ones first."""
    half = torch.float32 if device == "cpu" else torch.bfloat16
    if quick:
        neurons: list[Case] = [
            NeuronCase(m, 2, 2, torch.float32, n, device, 0.02) for m in MODES for n in (1 << 14, 1 << 16)
        ]
        network, mode = "ResNet-20", NETWORK_MODES[1]
        small = NetworkCase(network, mode, 2, 16, device, 0.5, 1, 2, seconds=0.1, profiled=True, dtype=half)
        return [*neurons, small, StepCase(network, mode, 2, 16, device, 0.5, seconds=0.1)]
    return neuron_cases(device) + network_cases(device, half) + step_cases(device)


def neuron_cases(device: str) -> list[Case]:
    """Every (L, T) at one size; T against the number of neurons at L = 2."""
    grid, sizes, most = (
        (1 << 18, [1 << n for n in (14, 16, 18, 20, 22)], 1 << 25)
        if device == "cpu"
        else (1 << 22, [1 << n for n in (16, 18, 20, 22, 24, 26, 27)], 1 << 28)
    )
    shapes = [(levels, steps, grid) for levels in GRID for steps in GRID]
    aim = (2, 2, 1 << 22) if device == "cpu" else None
    shapes += [(2, steps, n) for n in sizes if n != grid for steps in GRID if steps * n <= most]
    return [
        NeuronCase(mode, levels, steps, dtype, n, device, 5.0 if (levels, steps, n) == aim else 0.25)
        for dtype in (torch.float32, torch.bfloat16)
        for levels, steps, n in shapes
        # a CPU computes bfloat16 in float32 and gains little: the sizes are swept at T = 2 only
        if device != "cpu" or dtype == torch.float32 or n == grid or steps == 2
        for mode in MODES
    ]


def network_cases(device: str, dtype: torch.dtype) -> list[Case]:
    """Full CIFAR size and width on a GPU. On a CPU ResNet-20 has its full width, the others a quarter or less, in small batches."""
    found: list[Case] = []
    for name in ARCHITECTURES:
        for mode in NETWORK_MODES:
            if device != "cpu":
                found.append(NetworkCase(name, mode, 256, 32, device, profiled=name == "ResNet-18", dtype=dtype))
            elif name == "ResNet-20":
                found.append(NetworkCase(name, mode, 32, 32, device, seconds=10.0, profiled=True))
            else:
                found.append(
                    NetworkCase(name, mode, 4, 32, device, width=0.125 if name == "ResNet-19" else 0.25, seconds=0.8)
                )
    return found


def step_cases(device: str) -> list[Case]:
    """ResNet-20 at full size, in both precisions."""
    batch, seconds = (64, 20.0) if device == "cpu" else (256, 3.0)
    return [
        StepCase("ResNet-20", mode, batch, 32, device, seconds=seconds, dtype=dtype, profiled=True)
        for dtype in (torch.float32, torch.bfloat16)
        for mode in NETWORK_MODES
    ]
