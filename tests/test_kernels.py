"""The fused operator against the naive reference: values, gradients, layouts, memory, and how a backend is chosen.

The tests that take the ``backend`` fixture are about every fused backend: compiled on the CPU, Triton on a GPU, or on the CPU where
``TRITON_INTERPRET=1`` (``tests/test_triton.py`` runs this file so).
"""

import ctypes
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lmht import IF, LMHT, MHT, QCFS, functional, kernels
from lmht.kernels import compiled, operator
from lmht.kernels.operator import fire
from lmht.networks.resnet import resnet

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
Result = tuple[Tensor, ...]
STEPS = (1, 2, 3, 8, 16)
LONG = (17,) if INTERPRETED else (17, 64)  # rows in a cache, not in registers; one kernel for all of them in Triton
FEW, MANY = (
    (2_051, 6_145) if INTERPRETED else (10_007, 300_001)
)  # neurons: of some blocks and of many, or for many threads


@pytest.fixture(params=["compiled", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """A backend that can run here, in use, and its device, where new tensors are made."""
    if request.param == "compiled" and (INTERPRETED or not compiled.available()):
        pytest.skip("about Triton's interpreter" if INTERPRETED else "no C++ compiler")
    if request.param == "triton" and not (INTERPRETED or torch.cuda.is_available()):
        pytest.skip("no GPU (tests/test_triton.py interprets the kernels)")
    torch.manual_seed(0)
    device = "cuda" if request.param == "triton" and not INTERPRETED else "cpu"
    with kernels.use_backend(request.param), torch.device(device):
        yield request.param


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New memory is full of NaN (what Triton writes to) or of 0x7f (glibc's memory: 3e38), so that what isn't written shows."""
    libc, perturb = ctypes.CDLL(None), -6
    if glibc := hasattr(libc, "mallopt"):
        libc.mallopt(perturb, 0x80)
        assert torch.empty(10_000, device="cpu").min() > 3e38
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it on a GPU
    torch.use_deterministic_algorithms(True)  # from here on torch.empty fills with NaN
    yield
    torch.use_deterministic_algorithms(False)
    if glibc:
        libc.mallopt(perturb, 0)


def dyadic(*shape: int, dtype: torch.dtype = torch.float64, most: int = 16) -> Tensor:
    """Multiples of 1/8 in [-most/8, most/8]: float64 sums of products of them are exact."""
    return (torch.randint(-most, most + 1, shape) / 8).to(dtype)


def lmht(function: Callable[..., Tensor], grad: Tensor, inputs: Result, **arguments: object) -> Result:
    """Output and gradients in x, omega, leak."""
    x, omega, leak = (value.detach().requires_grad_() for value in inputs)
    out = function(x, omega=omega, leak=leak, **arguments)
    return out.detach(), *torch.autograd.grad(out, (x, omega, leak), grad)


def mht(grad: Tensor, current: Tensor, *, backend: str, **arguments: object) -> Result:
    with kernels.use_backend(backend):
        current = current.detach().requires_grad_()
        out = kernels.mht(current, **arguments)
    return out.detach(), *torch.autograd.grad(out, current, grad)


def qcfs(function: Callable[..., Tensor], grad: Tensor, inputs: Result, **arguments: object) -> Result:
    """Output and gradients in x, scale."""
    x, scale = (value.detach().requires_grad_() for value in inputs)
    out = function(x, scale=scale, **arguments)
    return out.detach(), *torch.autograd.grad(out, (x, scale), grad)


def assert_equal(got: Result, want: Result) -> None:
    for name, a, b in zip(("out", "dx", "domega or dscale", "dleak"), got, want, strict=False):
        assert torch.equal(a, b), f"{name}: off by {(a - b).abs().max()}"
        assert a.dtype == b.dtype


def test_a_backend_is_the_module_of_its_name(backend: str) -> None:
    assert operator.backend_module(backend).__name__.rpartition(".")[2] == {"triton": "gpu"}.get(backend, backend)


@pytest.mark.parametrize("size", [1, 5, FEW])
@pytest.mark.parametrize("steps", STEPS)
def test_dyadic_equal(backend: str, poisoned: None, steps: int, size: int) -> None:
    for levels, leaks, shape in ((2, (), ()), (4, (steps, 1), (size,))):
        inputs = dyadic(steps, size), dyadic(steps, steps, most=4), 4 * dyadic(*leaks, most=2)  # one more bit a step
        grad, arguments = dyadic(steps, size), {"levels": levels, "theta": 0.75, "v0": dyadic(*shape)}
        assert_equal(lmht(kernels.lmht, grad, inputs, **arguments), lmht(functional.lmht, grad, inputs, **arguments))


@pytest.mark.parametrize("steps", LONG)
def test_long(backend: str, poisoned: None, steps: int) -> None:
    """As many steps as a reparameterised twin has; a leak in {-1, 0, 1} costs no bits."""
    size = 600
    for levels, leaks, shape in ((1, (), ()), (2, (steps, 1), (size,))):
        inputs = dyadic(steps, size), dyadic(steps, steps, most=4), 8 * dyadic(*leaks, most=1)
        grad, arguments = dyadic(steps, size), {"levels": levels, "theta": 0.75, "v0": dyadic(*shape)}
        got = lmht(kernels.lmht, grad, inputs, **arguments)
        assert_equal(got, lmht(functional.lmht, grad, inputs, **arguments))
        assert_equal(lmht(kernels.lmht, grad, inputs, **arguments), got)
        for chain in (True, False):
            alone = {"levels": levels, "theta": 0.5, "leak": -1.0, "v0": arguments["v0"], "temporal_gradient": chain}
            assert_equal(mht(grad, inputs[0], backend=backend, **alone), mht(grad, inputs[0], backend="eager", **alone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4, 17])
def test_low_precision_equal(backend: str, poisoned: None, steps: int, dtype: torch.dtype) -> None:
    """Small dyadic numbers are exact in float32 too: half inputs are accumulated in it and rounded once."""
    leak = torch.tensor(0.5 if steps < 17 else 1.0)
    inputs = dyadic(steps, 97, dtype=dtype), dyadic(steps, steps, dtype=torch.float32, most=4), leak
    grad = dyadic(steps, 97, dtype=dtype)
    for v0 in (0.25, dyadic(97, dtype=torch.float32)):
        arguments = {"levels": 3, "theta": 0.5, "v0": v0}
        assert_equal(lmht(kernels.lmht, grad, inputs, **arguments), lmht(functional.lmht, grad, inputs, **arguments))
        for chain in (True, False):
            alone = {"levels": 3, "theta": 0.5, "leak": float(leak), "v0": v0, "temporal_gradient": chain}
            assert_equal(mht(grad, inputs[0], backend=backend, **alone), mht(grad, inputs[0], backend="eager", **alone))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("steps", STEPS[:3])
def test_random(backend: str, steps: int, dtype: torch.dtype) -> None:
    """Against the reference in float64, without neurons that come within 1e-4 of a tie or of an end of the window."""
    levels, theta, v0 = 3, 0.8, 0.4
    inputs = torch.randn(steps, 20_000).double(), torch.rand(steps, steps).double(), torch.tensor(0.9).double()
    x, omega, leak = inputs
    v, clear, befores = torch.full_like(x[0], v0), torch.ones_like(x[0], dtype=torch.bool), []
    for t, out in enumerate(functional.lmht(x, levels=levels, theta=theta, omega=omega, leak=leak, v0=v0)):
        m = leak * v + omega[t] @ x
        halves = m / (theta / 2)
        clear &= (halves - halves.round()).abs() > 1e-4
        befores.append(v)
        v = m - out
    assert clear.sum() > 15_000
    inputs, grad = (x[:, clear], omega, leak), torch.randn(steps, int(clear.sum())).double()
    arguments = {"levels": levels, "theta": theta, "v0": v0}
    want = lmht(functional.lmht, grad, inputs, **arguments)
    got = lmht(kernels.lmht, grad.to(dtype), tuple(value.to(dtype) for value in inputs), **arguments)
    # sums round by what they add up, however much of it cancels
    added = grad.abs() @ inputs[0].abs().T, (grad * torch.stack(befores)[:, clear]).abs().sum()
    sizes = want[0].abs().max(), want[1].abs().max(), added[0].max(), added[1]
    bounds = (1e-12,) * 4 if dtype == torch.float64 else (2e-6, 2e-6, 2e-7, 2e-7)
    for name, a, b, size, bound in zip(("out", "dx", "domega", "dleak"), got, want, sizes, bounds, strict=True):
        assert a.dtype == dtype
        error = (a.double() - b).abs().max() / size
        assert error <= bound, f"{name}: relative error {error:.1e}"


def test_ties_fall_as_in_the_reference(backend: str) -> None:
    """Multiples of theta and their float32 neighbours: dividing by a reciprocal, or fusing multiply and add, gets some wrong."""
    for theta in (0.1, 0.3, 0.7, 1.0, 1 / 3):
        multiples = torch.arange(0, 9000) * torch.tensor(theta)
        inf = torch.tensor(torch.inf)
        x = torch.stack([torch.cat([multiples, multiples.nextafter(inf), multiples.nextafter(-inf)])] * 2)
        omega, leak = torch.tensor([[0.7, 0.3], [1.1, -0.1]]), torch.tensor(0.9)
        for levels in (4, 9001):
            arguments = {"levels": levels, "theta": theta, "omega": omega, "leak": leak, "v0": theta / 2}
            assert torch.equal(kernels.lmht(x, **arguments), functional.lmht(x, **arguments))
            alone = {"levels": levels, "theta": theta}  # here m(1) is the multiple itself
            assert torch.equal(kernels.mht(x[:1], **alone), functional.mht(x[:1], **alone)[0] * theta)


@pytest.mark.parametrize("temporal_gradient", [True, False])
@pytest.mark.parametrize("steps", STEPS)
def test_mht(backend: str, poisoned: None, steps: int, temporal_gradient: bool) -> None:
    for v0 in (0.25, dyadic(301)):
        x, grad = dyadic(steps, 301), dyadic(steps, 301, most=4)
        arguments = {"levels": 2, "theta": 0.5, "leak": 0.5, "v0": v0, "temporal_gradient": temporal_gradient}
        assert_equal(mht(grad, x, backend=backend, **arguments), mht(grad, x, backend="eager", **arguments))


def test_layouts(backend: str) -> None:
    """Channels last stays; strided, sliced and expanded inputs and gradients are read right; what is dense isn't copied."""
    omega, leak = dyadic(2, 2), dyadic()
    plain = dyadic(2, 3, 4, 5, 6)
    last = plain.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 3))
    assert last.stride() == (360, 120, 1, 24, 4)
    inputs = {
        "channels last": last,
        "channels last, gradient not": last,
        "time inside": plain.transpose(0, 1).contiguous().transpose(0, 1),
        "sliced": torch.cat([plain, plain], 3)[:, :, :, :5],
        "every other step": plain.repeat_interleave(2, 0)[::2],
        "expanded": plain[:1].expand(2, 3, 4, 5, 6),
        "static, channels last": last[:1].expand(2, 3, 4, 5, 6),
    }
    for name, x in inputs.items():
        grad = dyadic(2, 3, 4, 5, 6)
        if name == "channels last":
            grad = torch.empty_strided(last.shape, last.stride(), dtype=grad.dtype).copy_(grad)
        arguments = {"levels": 2, "theta": 0.5, "v0": 0.25}
        got = lmht(kernels.lmht, grad, (x, omega, leak), **arguments)
        assert_equal(got, lmht(functional.lmht, grad, (x.contiguous(), omega, leak), **arguments))
        if "channels last" in name:
            assert got[0].stride() == got[1].stride() == last.stride(), name
    static = lmht(kernels.lmht, plain[:1].expand(2, 3, 4, 5, 6), (plain, omega, leak), **arguments)
    assert_equal(static, lmht(functional.lmht, plain[:1].repeat(2, 1, 1, 1, 1), (plain, omega, leak), **arguments))


@pytest.mark.parametrize("asks", ["x", "omega", "leak", "scale"])
def test_a_gradient_that_is_asked_for_alone(backend: str, poisoned: None, asks: str) -> None:
    grad, found = dyadic(3, 301, most=4), []
    tensors = {"x": dyadic(3, 301), "omega": dyadic(3, 3), "leak": dyadic(), "scale": dyadic().abs() + 1}
    tensors[asks].requires_grad_()
    for module in (kernels, functional):
        arguments = {name: tensors[name] for name in ("omega", "leak")}
        out = module.lmht(tensors["x"], levels=2, theta=0.5, **arguments)
        if asks == "scale":
            out = module.qcfs(tensors["x"], levels=2, scale=tensors["scale"])
        found.append(torch.autograd.grad(out, tensors[asks], grad))
    assert_equal(*found)


def test_second_derivatives_are_refused(backend: str) -> None:
    x, one = dyadic(2, 301).requires_grad_(), torch.tensor(1.0, dtype=torch.float64)
    neuron = {"levels": 2, "theta": 0.5}
    outs = kernels.lmht(x, omega=dyadic(2, 2), leak=one, **neuron), kernels.mht(x, **neuron)
    for out in (*outs, kernels.qcfs(x, levels=2, scale=one)):
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            torch.autograd.grad((gradient + x).sum(), x)


@pytest.mark.parametrize("negated", ["x", "grad", "omega", "leak", "v0", "scale"])
def test_what_torch_negates_lazily(backend: str, negated: str) -> None:
    """A flag on memory that holds the opposite; one argument at a time, as torch itself resolves them all where x has it."""
    for steps in (1, 2):
        shapes = {"x": (steps, 301), "grad": (steps, 301), "omega": (steps, steps), "leak": (), "v0": (), "scale": ()}
        a = {name: dyadic(*shape) for name, shape in shapes.items()} | {"scale": torch.tensor(1.0).double()}
        a["leak"] += 3  # not 0, which is its own opposite
        a["v0"] += 3
        b = a | {negated: torch._neg_view(-a[negated])}
        got, want = (
            (
                *lmht(
                    kernels.lmht, one["grad"], (one["x"], one["omega"], one["leak"]), levels=8, theta=0.5, v0=one["v0"]
                ),
                *qcfs(kernels.qcfs, one["grad"], (one["x"], one["scale"]), levels=4),
            )
            for one in (b, a)
        )
        assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("shape", [(2, 0), (2, 3, 0, 4), (2,)])
def test_no_neuron_or_one(backend: str, shape: tuple[int, ...]) -> None:
    inputs, grad = (dyadic(*shape), dyadic(2, 2), dyadic()), dyadic(*shape)
    arguments = {"levels": 2, "theta": 1.0, "v0": 0.5}
    assert_equal(lmht(kernels.lmht, grad, inputs, **arguments), lmht(functional.lmht, grad, inputs, **arguments))


@pytest.mark.parametrize("steps", [2, 4])
def test_two_runs_agree_bitwise(backend: str, steps: int) -> None:
    inputs = torch.randn(steps, MANY), torch.rand(steps, steps), torch.tensor(0.9)
    grad, arguments = torch.randn(steps, MANY), {"levels": 2, "theta": 1.0, "v0": 0.5}
    first = lmht(kernels.lmht, grad, inputs, **arguments)
    for _ in range(3):
        assert_equal(lmht(kernels.lmht, grad, inputs, **arguments), first)
    want = lmht(functional.lmht, grad, inputs, **arguments)  # in float32 too: near a tie float64 may fire otherwise
    assert (first[2] - want[2]).abs().max() <= 1e-4 * want[2].abs().max()


def test_nan_and_infinity(backend: str) -> None:
    """NaN is passed on (the reference raises); infinities saturate, or stay silent."""
    x = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1.0], [1.0, 1.0, 1.0, 1.0]])
    out = kernels.mht(x, levels=2, theta=1.0)
    assert out.isnan().tolist() == [[True, False, False, False], [True, False, False, False]]
    assert out[0, 1:].tolist() == [2.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="NaN"), kernels.use_backend("eager"):
        kernels.mht(x, levels=2, theta=1.0)


def test_opcheck(backend: str) -> None:
    x, omega, leak = dyadic(2, 3, 5).requires_grad_(), dyadic(2, 2).requires_grad_(), dyadic().requires_grad_()
    torch.library.opcheck(fire, (x, omega, leak, dyadic(), 2, 1.0, False, backend))
    torch.library.opcheck(fire, (x, None, dyadic(2, 1), dyadic(3, 5), 2, 1.0, True, backend))
    torch.library.opcheck(fire, (x.transpose(0, 1), None, dyadic(), dyadic(), 2, 1.0, True, backend))
    for rows in (x.detach(), x.detach()[:, :0]):  # what a compiler is told of the gradients, and what it gets
        for mixing, leaks in ((omega.detach(), dyadic()), (None, dyadic(2, 1))):
            for parameters in (False, True):
                inputs = torch.ones_like(rows), rows, mixing, leaks, dyadic(), 2, 1.0, False, backend, parameters
                torch.library.opcheck(operator.fire_backward, inputs)


def test_errors_are_the_reference_s(backend: str) -> None:
    good = {"levels": 2, "theta": 1.0, "omega": torch.eye(2), "leak": 1.0}
    for bad in (
        {"levels": 0},
        {"theta": -1.0},
        {"omega": torch.eye(3)},
        {"leak": torch.ones(3)},
        {"v0": torch.ones(4)},
    ):
        (name,) = bad
        with pytest.raises(ValueError, match=name) as reference:
            functional.lmht(torch.ones(2, 3), **{**good, **bad})
        with pytest.raises(ValueError, match=name) as fused:
            kernels.lmht(torch.ones(2, 3), **{**good, **bad})
        assert str(fused.value) == str(reference.value)


def test_omega_elsewhere_is_an_error(backend: str) -> None:
    for function in (kernels.lmht, functional.lmht):
        with pytest.raises(ValueError, match=r"omega is on meta, the input on (cpu|cuda:0); move one of them"):
            function(torch.ones(2, 3), levels=2, theta=1.0, omega=torch.eye(2, device="meta"), leak=1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_qcfs_dyadic_equal(backend: str, poisoned: None, dtype: torch.dtype) -> None:
    """Levels 0 and Tq, their neighbours, ties and both bounds of the mask are among the inputs."""
    compute = functional.compute_dtype(torch.empty(0, dtype=dtype))
    for levels, scale in ((1, 1.0), (4, 0.5), (8, 2.0)):
        for shape in ((1,), (7, 5), (FEW,)):
            x, grad = dyadic(*shape, dtype=dtype, most=levels * 10), dyadic(*shape, dtype=dtype)
            inputs = x, torch.tensor(scale, dtype=compute).reshape((1,) * (len(shape) - 1))
            want = qcfs(functional.qcfs, grad, inputs, levels=levels)
            assert_equal(qcfs(kernels.qcfs, grad, inputs, levels=levels), want)
    level = (x.double() * levels / scale + 0.5).floor()
    assert {-1, 0, levels, levels + 1} <= {*level.tolist()}
    assert torch.equal(want[1], torch.where((level >= 0) & (level <= levels), grad, 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_qcfs_random(backend: str, dtype: torch.dtype) -> None:
    """Values bit for bit the reference's, ties, their neighbours and saturation too; gradients against float64."""
    for levels, scale in ((4, 0.7), (8, 8.0), (3, 0.1)):
        height = torch.tensor(scale, dtype=dtype) / levels
        ties = (torch.arange(-3, 9000) + 0.5) * height
        inf = torch.tensor(torch.inf, dtype=dtype)
        x = torch.cat([ties, ties.nextafter(inf), ties.nextafter(-inf), torch.randn(20_000, dtype=dtype) * scale])
        inputs, grad = (x, torch.tensor(scale, dtype=dtype)), torch.randn(len(x), dtype=dtype)
        got, want = (qcfs(function, grad, inputs, levels=levels) for function in (kernels.qcfs, functional.qcfs))
        assert_equal(got[:2], want[:2])
        out, dx, dscale = got
        terms = (grad.double() * out.double() - dx.double() * x.double()) / inputs[1].double()
        assert (dscale - terms.sum()).abs() <= (1e-14 if dtype == torch.float64 else 1e-6) * terms.abs().sum()


def test_qcfs_layouts(backend: str) -> None:
    plain, scale = dyadic(3, 4, 5, 6), torch.tensor(1.0, dtype=torch.float64)
    last = plain.contiguous(memory_format=torch.channels_last)
    inputs = {
        "channels last": last,
        "channels last, gradient not": last,
        "transposed": plain.transpose(0, 1),
        "sliced": torch.cat([plain, plain], 2)[:, :, :5],
        "expanded": plain[:1].expand(3, 4, 5, 6),
        "none": plain[:0],
        "one number": plain[0, 0, 0, 0],
    }
    for name, x in inputs.items():
        grad = dyadic(*x.shape)
        if name == "channels last":
            grad = grad.contiguous(memory_format=torch.channels_last)
        got = qcfs(kernels.qcfs, grad, (x, scale), levels=4)
        assert_equal(got, qcfs(functional.qcfs, grad, (x.contiguous(), scale), levels=4))
        if "channels last" in name or name == "transposed":
            assert got[0].stride() == got[1].stride() == x.stride(), name


def test_qcfs_repeats_and_opcheck(backend: str) -> None:
    inputs, grad = (torch.randn(MANY), torch.tensor(1.3)), torch.randn(MANY)
    first = qcfs(kernels.qcfs, grad, inputs, levels=4)
    assert_equal(qcfs(kernels.qcfs, grad, inputs, levels=4), first)
    x, scale = dyadic(2, 3).requires_grad_(), torch.tensor([2.0]).double().requires_grad_()
    torch.library.opcheck(operator.qcfs, (x, scale, 4, backend))
    torch.library.opcheck(operator.qcfs, (x.T, scale.detach(), 4, backend))
    for rows in (x.detach(), x.detach()[:0]):
        for parameters in (False, True):
            inputs = torch.ones_like(rows), rows, scale.detach(), 4, backend, parameters
            torch.library.opcheck(operator.qcfs_backward, inputs)


def test_qcfs_errors_and_nan(backend: str) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.6])
    out = kernels.qcfs(x, levels=2, scale=1.0)
    assert out[0].isnan()
    assert out[1:].tolist() == [1.0, 0.0, 0.5]
    for bad in ({"levels": 0}, {"scale": torch.ones(2)}):
        (name,) = bad
        errors = []
        for function in (functional.qcfs, kernels.qcfs):
            with pytest.raises(ValueError, match=name) as error:
                function(torch.ones(2), **{"levels": 2, "scale": 1.0, **bad})
            errors.append(str(error.value))
        assert errors[0] == errors[1]
    for scale in (0.0, -0.5, -1.0, torch.inf, torch.nan):
        if backend == "triton":
            assert operator.qcfs(x, torch.tensor(scale), 2, backend).isnan().all()
        if x.is_cuda:
            assert kernels.qcfs(x, levels=2, scale=scale).isnan().all()
        else:
            with pytest.raises(ValueError, match="scale must be finite and > 0"):
                kernels.qcfs(x, levels=2, scale=scale)


def test_without_torchs_tool_chain_there_is_no_compiled_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.6 without setuptools, say."""
    monkeypatch.setitem(sys.modules, "torch.utils.cpp_extension", None)
    assert not compiled.available()


@pytest.fixture
def cpu() -> Iterator[None]:
    if INTERPRETED or not compiled.available():
        pytest.skip("about the compiled backend, which needs a C++ compiler")
    with kernels.use_backend("compiled"):
        yield


def test_one_kernel_for_all_sizes_and_thresholds(cpu: None) -> None:
    x = torch.randn(2, 50_000)
    kernels.mht(x, levels=2, theta=1.0)
    compilations = compiled.library.cache_info().misses
    for size in (1, 2, 16, 4095, 4096, 4097, 50_000):
        for levels, theta in ((1, 1.0), (3, 0.25)):
            got = kernels.mht(x[:, :size], levels=levels, theta=theta, v0=theta / 2)
            assert torch.equal(got, functional.mht(x[:, :size], levels=levels, theta=theta, v0=theta / 2)[0] * theta)
    assert compiled.library.cache_info().misses == compilations


def test_the_number_of_threads_does_not_show(cpu: None) -> None:
    before, x, results = torch.get_num_threads(), torch.randn(2, 100_000), []
    inputs = x, torch.rand(2, 2), torch.tensor(0.9)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = lmht(kernels.lmht, x.sin(), inputs, levels=2, theta=1.0)
            results.append((*found, *qcfs(kernels.qcfs, x.sin(), (x, torch.tensor(0.7)), levels=4)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_a_compiler_that_fails_is_named(cpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "vectors.h").touch()
    (tmp_path / "fire.cpp").write_text("int forward( { }")
    monkeypatch.setattr(compiled, "SOURCES", tmp_path)
    with pytest.raises(RuntimeError, match=r"fails on fire.cpp: .*error: .*LMHT_BACKEND=eager"):
        compiled.library.__wrapped__(2, torch.float32)


def test_in_a_compiled_network(cpu: None) -> None:
    network = nn.Sequential(LMHT(2, 2), nn.AvgPool1d(2), MHT(2, 2), QCFS(4, 1.0))
    whole = torch.compile(network, fullgraph=True)
    for size in (8, 12):
        x = torch.randn(size, 3, 10, requires_grad=True)
        for model in (network, whole):
            network.zero_grad()
            out = model(x)
            grads = torch.autograd.grad(out.square().sum(), [x, *network.parameters()])
            if model is network:
                want = (out, *grads)
        for a, b in zip((out, *grads), want, strict=True):
            torch.testing.assert_close(a, b)


def test_autocast(cpu: None) -> None:
    """Half activations go in and come out; Omega and its gradient stay float32."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), LMHT(2, 2, v0=0.5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        current = network[0](torch.randn(4, 1, 8, 8))
        out = network[1](current)
        with kernels.use_backend("eager"):
            assert torch.equal(out, network[1](current))
    assert out.dtype == current.dtype == torch.bfloat16
    out.sum().backward()
    assert network[1].tgim.a.grad.dtype == torch.float32
    assert network[1].tgim.a.grad.abs().sum() > 0


def test_the_output_may_be_changed_in_place(cpu: None) -> None:
    """As that of the eager backend: it is no view, and isn't saved."""
    x = torch.randn(2, 4, 3, 5, 5, requires_grad=True)
    for function in (LMHT(2, 2), MHT(2, 2), QCFS(4, 1.0)):
        arguments = {} if isinstance(function, QCFS) else {"folded": False}
        out = function(x, **arguments)
        out += 1
        assert torch.equal(out.detach(), function(x, **arguments) + 1)
        out.sum().backward()


def test_inference_mode(cpu: None) -> None:
    x = torch.randn(2, 100)
    with torch.inference_mode():
        out = kernels.mht(x, levels=2, theta=1.0)
    assert torch.equal(out, kernels.mht(x, levels=2, theta=1.0))


def test_only_inputs_are_saved(cpu: None) -> None:
    x, tgim = (
        torch.randn(2, 1000, requires_grad=True),
        {"omega": torch.rand(2, 2, requires_grad=True), "leak": torch.ones(2, 1)},
    )
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        kernels.lmht(x, levels=2, theta=1.0, **tgim)
    assert sorted(t.numel() for t in saved) == [1, 2, 4, 2000]
    assert any(t.data_ptr() == x.data_ptr() for t in saved)


PEAK = """
import torch
from lmht import kernels

torch.set_num_threads(1)

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

def step(size):
    x, grad = torch.ones(4, size, requires_grad=True), torch.ones(4, size)
    omega, leak = torch.rand(4, 4, requires_grad=True), torch.ones((), requires_grad=True)
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = memory("VmRSS")
    out = kernels.lmht(x, levels=2, theta=1.0, omega=omega, leak=leak)
    grads = torch.autograd.grad(out, (x, omega, leak), grad)
    return (memory("VmHWM") - before) / (x.numel() * 4)

with kernels.use_backend("compiled"):
    step(10_000)
    print(step(8_000_001))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_memory_is_output_and_gradient(cpu: None) -> None:
    """Beside the input and the gradient that came in, forward and backward allocate out and dx, and nothing else of their size."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 1.95 < float(done.stdout) < 2.02, "peak in units of the input"


def copies(network: nn.Module, images: Tensor) -> list[str]:
    """Copies of more than 1000 elements in a training step, with their shapes."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        network(images).square().mean().backward()
    events = (event for event in profile.events() if event.name in ("aten::copy_", "aten::clone", "aten::contiguous"))
    return [
        f"{event.name} {event.input_shapes[0]}" for event in events if torch.Size(event.input_shapes[0]).numel() > 1000
    ]


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_network_without_hidden_copies(cpu: None, last: bool) -> None:
    """The SNN copies what the ReLU network on the same folded batch copies, and repeats the stem's output once."""
    images = torch.randn(4, 3, 32, 32)
    snn, ann = (
        resnet(20, activation, classes=10, steps=steps) for activation, steps in ((lambda: LMHT(2, 2), 2), (nn.ReLU, 1))
    )
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
        snn, ann = (network.to(memory_format=torch.channels_last) for network in (snn, ann))
    formats = []
    for module in snn.modules():
        if isinstance(module, LMHT):
            module.register_forward_hook(lambda _, inputs, out: formats.append((inputs[0].stride(), out.stride())))
    snn(images)
    assert len(formats) == 19
    for current, out in formats:
        assert current == out
        assert (out[1] == 1) == last
    extra = copies(snn, images)
    for copy in copies(ann, images.repeat(2, 1, 1, 1)):
        if copy in extra:
            extra.remove(copy)
    # the average pool hands its gradient back in the plain format, which the last neuron brings into its own
    assert extra == (["aten::copy_ [2, 4, 64, 8, 8]"] if last else [])


def test_choice() -> None:
    small, large = torch.ones(2, 100), torch.ones(2, kernels.WORTH_COMPILING)
    fast = "compiled" if compiled.available() else "eager"
    with kernels.use_backend("auto"):
        assert kernels.backend_for(small) == "eager"
        assert kernels.backend_for(large) == fast
        assert kernels.backend_for(large.half()) == fast
        assert kernels.backend_for(large.reshape(64, -1)) == fast
        assert kernels.backend_for(large.reshape(128, -1)) == "eager"
        with kernels.use_backend("eager"):
            assert kernels.backend_for(large) == "eager"
        assert kernels.backend_for(large) == fast
    with pytest.raises(ValueError, match="one of eager, compiled, triton"), kernels.use_backend("fast"):
        pass
    with kernels.use_backend("compiled"), pytest.raises(ValueError, match="T = 65"):
        kernels.backend_for(torch.ones(65, 2))
    if not INTERPRETED:
        with kernels.use_backend("triton"), pytest.raises(ValueError, match="for CUDA"):
            kernels.mht(small, levels=2, theta=1.0)


def test_choice_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    large = torch.ones(2, kernels.WORTH_COMPILING)
    monkeypatch.setenv("LMHT_BACKEND", "eager")
    assert kernels.backend_for(large) == "eager"
    with kernels.use_backend("auto"):
        assert kernels.backend_for(large) == ("compiled" if compiled.available() else "eager")
    monkeypatch.setenv("LMHT_BACKEND", "fast")
    with pytest.raises(ValueError, match="got 'fast'"):
        kernels.backend_for(large)


def test_without_a_compiler_it_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_look", lambda what: False)
    monkeypatch.delenv("LMHT_BACKEND", raising=False)
    kernels._say_once.cache_clear()
    neuron, x = IF(2), torch.ones(2, kernels.WORTH_COMPILING)
    with pytest.warns(RuntimeWarning, match=r"slow backend 'eager': it needs a C\+\+ compiler"):
        neuron(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        neuron(x)
    with kernels.use_backend("compiled"), pytest.raises(ValueError, match=r"C\+\+ compiler"):
        neuron(x)
