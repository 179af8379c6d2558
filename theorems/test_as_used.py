"""As networks use a neuron: whole tensors, views, leaves that are trained or not, several forwards before a backward, long trains.

Inputs are multiples of 1/8, with few enough of them that every number below is exact in float32: results are equal, not close.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from theorems import check, oracle
from theorems.conventions import CLIP, SURROGATE
from theorems.impl import Loaded
from theorems.oracle import PAPER, Q, Rules
from theorems.test_contract import dyadic

LEVELS, THETA = 3, 0.75
WIDE = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
HOW = "whole tensors as networks give them, float64 and float32"
gradients = pytest.mark.statement(
    "Eqs. 8-9 (gradients)",
    precondition="none: x, Omega and lambda; s*theta has derivative 1 inside the window",
    how=HOW,
)


@dataclass(frozen=True)
class Use:
    """What a neuron is given; ``upstream`` is dLoss/dout."""

    x: Tensor
    omega: Tensor
    leak: Tensor
    v0: float | Tensor
    upstream: Tensor
    leaves: tuple[str, ...] = ("x", "omega", "leak")
    levels: int = LEVELS
    theta: float = THETA

    def call(self, impl: Loaded) -> check.Call:
        """A call of lmht on copies that are trained as ``leaves`` says; views stay views."""
        given = {
            name: getattr(self, name).detach().requires_grad_(name in self.leaves) for name in ("x", "omega", "leak")
        }
        return check.Call(impl, "lmht", given.pop("x"), levels=self.levels, theta=self.theta, v0=self.v0, **given)


def use(dtype: torch.dtype, steps: int, *shape: int) -> Use:
    mixing = torch.tensor([[((t + 2 * j) % 5 - 2) / 4 for j in range(steps)] for t in range(steps)], dtype=dtype)
    leak = torch.tensor(0.5 if steps <= 8 else 1.0, dtype=dtype)
    mixing = mixing if steps <= 8 else torch.eye(steps, dtype=dtype)  # few bits, however long
    upstream = (dyadic(steps, *shape, seed=3) * 8).clamp(-4, 4).to(dtype)
    return Use(dyadic(steps, *shape, dtype=dtype), mixing, leak, dyadic(*shape, dtype=dtype, seed=1), upstream)


def at_ties(one: Use, theta: float, leak: float) -> Use:
    """v(1) = 3/8; m(2) = k*theta, or 2**-15 less, for k = 0 to 4."""
    k = torch.arange(5, dtype=one.x.dtype)
    m = torch.stack([k * theta, k * theta - 2**-15], -1)
    x = torch.stack([torch.full_like(m, 0.375), m - leak * 0.375])
    upstream = torch.ones_like(x)
    return replace(
        one, x=x, omega=torch.eye(2).to(x), leak=torch.tensor(leak).to(x), v0=0.0, theta=theta, upstream=upstream
    )


def below_ties(one: Use) -> Use:
    """m(1) is the largest float below k*theta, for k = 1 to 4: k - 1 spikes."""
    m = torch.nextafter(torch.arange(1, 5, dtype=one.x.dtype) * THETA, one.x.new_zeros(()))
    x = torch.stack([m, torch.zeros_like(m)])
    return replace(one, x=x, omega=torch.eye(2).to(x), v0=0.0, upstream=torch.ones_like(x))


USES: dict[str, Callable[[Use], Use]] = {
    "as it is": lambda one: one,
    "v(0) a number": lambda one: replace(one, v0=0.375),
    "v(0) = 0, a number": lambda one: replace(one, v0=0.0),
    "the input is not trained": lambda one: replace(one, leaves=("omega", "leak")),
    "the input alone is trained": lambda one: replace(one, leaves=("x",)),
    "one number is the gradient of all": lambda one: replace(one, upstream=one.x.new_ones(()).expand(one.x.shape)),
    "the same current at all steps, a view": lambda one: replace(one, x=one.x[:1].expand(one.x.shape)),
    "time innermost in memory": lambda one: replace(one, x=one.x.movedim(0, -1).contiguous().movedim(-1, 0)),
    "Omega transposed": lambda one: replace(one, omega=one.omega.T),
    "v(0) with strides": lambda one: replace(one, v0=torch.stack([torch.as_tensor(one.v0)] * 2, -1)[..., 0]),
    # more bits than half types have, so that what is rounded to one of them on the way is seen
    "Omega and v(0) of 13 bits": lambda one: replace(
        one, omega=one.omega + 2**-12, v0=0.375 + 2**-12, upstream=one.upstream.sign()
    ),
    "a current of 13 bits": lambda one: replace(one, x=one.x + 2**-12, upstream=one.upstream.sign()),
    "theta of 12 bits, m at its multiples and just below": lambda one: at_ties(one, THETA + 2**-12, 0.5),
    "a leak of 12 bits, m at multiples of theta and just below": lambda one: at_ties(one, THETA, 0.5 + 2**-12),
    "a gradient of 12 bits": lambda one: replace(one, upstream=one.upstream.sign() * (1 + 2**-11)),
    "L = 65 536": lambda one: replace(one, x=one.x * 2**15, levels=65_536),
}
SIZES: dict[str, tuple[int, ...]] = {
    "small": (3, 5),
    "[T, N, C, H, W]": (3, 2, 3, 2, 2),
    "many neurons": (4, 1500),
    "T = 16": (16, 40),
    "T = 70": (70, 3),
}


# [T, ...] each: potentials before the spikes, spikes, potentials after the reset
Traces = tuple[Tensor, Tensor, Tensor]


def equations(one: Use, rules: Rules = PAPER) -> Traces:
    """Eqs. 5-7 in float64, or what a neuron's conventions make of them."""
    x, omega, leak = (value.double() for value in (one.x, one.omega, one.leak))
    currents, v = torch.einsum("tj,j...->t...", omega, x), torch.as_tensor(one.v0).double().expand(x.shape[1:])
    if rules != PAPER:
        return by_rules(one, rules, currents.flatten(1).T.tolist(), v.flatten().tolist())
    traces = []
    for current in currents:
        m = leak * v + current
        s = (m / one.theta).floor().clamp(0, one.levels)
        v = m - s * one.theta
        traces.append((m, s, v))
    m, s, v = map(torch.stack, zip(*traces, strict=True))
    return m, s, v


def by_rules(one: Use, rules: Rules, currents: list[list[float]], v0: list[float]) -> Traces:
    """Neuron by neuron, on rational numbers."""
    theta, leak = Q(one.theta), Q(one.leak.item())
    found = [
        oracle.mht([*map(Q, train)], levels=one.levels, theta=theta, leak=leak, v0=Q(start), rules=rules)
        for train, start in zip(currents, v0, strict=True)
    ]
    parts = ([[*map(float, getattr(trace, part))] for trace in found] for part in "msv")
    m, s, v = (torch.tensor(part, dtype=torch.float64).T.reshape(one.x.shape) for part in parts)
    return m, s, v


def slopes(impl: Loaded, one: Use, m: Tensor) -> Tensor:
    """d(out)/dm at every potential: Eq. 8's window, or the neuron's own, of single steps without mixing or leak."""
    if not impl.has(SURROGATE):
        return ((m >= one.theta / 2) & (m <= (one.levels + 0.5) * one.theta)).double()
    leaf, unit = m.reshape(1, -1).to(one.x.dtype).requires_grad_(), torch.ones(1, 1, dtype=one.x.dtype)
    call = check.Call(impl, "lmht", leaf, levels=one.levels, theta=one.theta, omega=unit, leak=unit[0, 0])
    call.backward()
    return call.grad("x").double().reshape(m.shape)


def terms(impl: Loaded, one: Use) -> tuple[Tensor, Tensor]:
    """dLoss/dI(t), which is dLoss/dm(t), and v(t-1), by the neuron's conventions."""
    m, _, after = equations(one, impl.rules("lmht"))
    first = torch.as_tensor(one.v0).double().expand(m.shape[1:])
    return one.upstream.double() * slopes(impl, one, m), torch.cat([first[None], after[:-1]])


def gradients_of(impl: Loaded, one: Use) -> dict[str, Tensor]:
    """Eqs. 8-9 in float64."""
    x, omega, (g, before) = one.x.double(), one.omega.double(), terms(impl, one)
    found = {"x": torch.einsum("tj,t...->j...", omega, g), "leak": (g * before).sum()}
    return found | {"omega": g.flatten(1) @ x.flatten(1).T}


def equal(got: Tensor, expected: Tensor, what: str, call: check.Call | None = None, off: float = 0.0) -> None:
    """``off``: what rounding explains, of the largest number."""
    error = (got.detach().double() - expected).abs()
    wrong = ~(error <= off * (1 + expected.abs().max())) if off else ~(error == 0)
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        first = f"at {list(place)} {got[place].item():g}, not {expected[place].item():g}"
        source = f"\nreproduce:\n{call.source}" if call else ""
        raise AssertionError(f"{what}: {int(wrong.sum())} of {expected.numel()} values differ, {first}{source}")


def called(impl: Loaded, one: Use, what: str) -> check.Call:
    """A call whose output, while gradients are asked for, is the equations'."""
    call = one.call(impl)
    expected = equations(one, impl.rules("lmht"))[1] * one.theta
    equal(call.result, expected, f"{what}: the output while gradients are asked for", call)
    return call


def check_gradients(one: Use, call: check.Call, what: str) -> None:
    """Another surrogate's own values stand for the window's, up to rounding."""
    expected, off = gradients_of(call.impl, one), 1e-4 if call.impl.has(SURROGATE) else 0.0
    upstream = one.upstream.clone()
    call.backward(one.upstream)
    equal(one.upstream, upstream.double(), f"{what}: the caller's dLoss/dout was changed in place")
    for name, value in call.given.items():
        if isinstance(value, Tensor):
            now = call.x if name == "x" else call.arguments[name]
            equal(now, value.detach().double(), f"{what}: the caller's {name} was changed in place")
    for name in one.leaves:
        leaf = call.x if name == "x" else call.arguments[name]
        assert leaf.grad is not None, f"{what}: no gradient of {name}"
        equal(leaf.grad, expected[name], f"{what}: d{name}", call, off)


@pytest.mark.gradient
@gradients
@pytest.mark.parametrize("name", USES)
@WIDE
def test_a_use(impl: Loaded, name: str, dtype: torch.dtype) -> None:
    one = USES[name](use(dtype, 3, 5))
    check_gradients(one, called(impl, one, name), name)


@pytest.mark.gradient
@gradients
@pytest.mark.parametrize("size", SIZES)
@WIDE
def test_a_size(impl: Loaded, size: str, dtype: torch.dtype) -> None:
    steps, *shape = SIZES[size]
    one = use(dtype, steps, *shape)
    check_gradients(one, called(impl, one, size), size)


@pytest.mark.gradient
@gradients
def test_several_forwards_before_a_backward(impl: Loaded) -> None:
    """And parameters that an optimiser changes in place between them."""
    uses = [use(torch.float64, 3, 5), use(torch.float64, 4, 2, 3), use(torch.float64, 3, 5)]
    uses[2] = replace(uses[2], x=uses[2].x + 0.5)
    calls = [called(impl, one, "several forwards") for one in uses]
    for i in (1, 0, 2):
        check_gradients(uses[i], calls[i], f"forward {i + 1} of three")
    omega = uses[0].omega.clone().requires_grad_()
    for change in (0.0, 0.25):
        with torch.no_grad():
            omega += change
        one = replace(uses[0], omega=omega)
        out = impl.lmht(one.x, levels=LEVELS, theta=THETA, omega=omega, leak=one.leak, v0=one.v0)
        expected = equations(replace(one, omega=omega.detach()), impl.rules("lmht"))[1] * THETA
        equal(out, expected, "Omega was changed in place")


def forward(impl: Loaded, method: str, one: Use) -> Iterator[tuple[str, Tensor, Tensor, check.Call]]:
    """A method's spikes and potentials beside the equations' (Omega the identity)."""
    many = method == "mht"
    x = one.x if many else one.x.clamp(max=THETA)
    plain = replace(one, omega=torch.eye(len(x), dtype=torch.float64), x=x, levels=LEVELS if many else 1)
    _, spikes, v = equations(plain, impl.rules(method))
    arguments: dict[str, Any] = {"theta": THETA, "leak": float(one.leak), "v0": one.v0}
    call = check.Call(impl, method, x, **arguments, **({"levels": LEVELS} if many else {}))
    yield f"{method}'s spikes", call.result[0], spikes, call
    yield f"{method}'s potentials", call.result[1], v, call


def check_forward(impl: Loaded, method: str, size: str, dtype: torch.dtype) -> None:
    """v(0) a number or a tensor, and with strides; what is given stays as it was, what is returned too."""
    steps, *shape = SIZES[size]
    kept: list[tuple[str, Tensor, Tensor]] = []
    names = ("as it is", "v(0) a number", "v(0) = 0, a number", "v(0) with strides", "time innermost in memory")
    for name, changed in [*((name, USES[name]) for name in names), ("m just below multiples of theta", below_ties)]:
        one = changed(use(dtype, steps, *shape))
        before = one.x.clone()
        for what, got, expected, call in forward(impl, method, one):
            equal(got, expected, f"{size}, {name}: {what}", call)
            kept.append((f"{what}, after another call", got, expected))
        equal(one.x, before.double(), "the input was changed in place")
    for what, got, expected in kept:
        equal(got, expected, what)


@pytest.mark.statement("Eq. 7 (LM-HT)", precondition="none", how=HOW)
@WIDE
def test_lmht_just_below_multiples_of_theta(impl: Loaded, dtype: torch.dtype) -> None:
    """How many spikes there are; a straight-through sum rounds their heights."""
    one = below_ties(use(dtype, 3, 5))
    spikes = equations(one, impl.rules("lmht"))[1]
    equal((one.call(impl).result / THETA).round(), spikes, "m just below multiples of theta: spikes")


@pytest.mark.statement("Eqs. 5-6 (M-HT)", precondition="none", how=HOW)
@pytest.mark.parametrize("size", SIZES)
@WIDE
def test_mht(impl: Loaded, size: str, dtype: torch.dtype) -> None:
    check_forward(impl, "mht", size, dtype)


@pytest.mark.statement("Eqs. 1-2 (IF, LIF)", precondition="none", how=HOW)
@pytest.mark.parametrize("size", SIZES)
@WIDE
def test_integrate_and_fire(impl: Loaded, size: str, dtype: torch.dtype) -> None:
    check_forward(impl, "integrate_and_fire", size, dtype)


@pytest.mark.gradient
@pytest.mark.statement("Eq. 4 (QCFS)", precondition="none: QCFS, dx = mask, dvartheta = (a - mask*x)/vartheta", how=HOW)
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4, 5), (4000,)], ids=str)
@pytest.mark.parametrize("Tq", [1, 3, 4, 7])
@WIDE
def test_quantised(impl: Loaded, Tq: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """vartheta = 3, x in odd multiples of 3/128, so that x * Tq / 3 + 1/2 is no integer: equal up to rounding."""
    impl.follows(CLIP)
    x = ((dyadic(*shape, seed=Tq) * 8).round() * 8 + 1).to(dtype) / 64 * 1.5
    upstream = (dyadic(*shape, seed=9) * 8).clamp(-4, 4).to(dtype)
    leaf, scale = x.clone().requires_grad_(), torch.tensor(3.0, dtype=dtype, requires_grad=True)
    call = check.Call(impl, "qcfs", leaf, levels=Tq, scale=scale)
    level = (x.double() * Tq / 3 + 0.5).floor()
    mask, out = (level >= 0) & (level <= Tq), 3 / Tq * level.clamp(0, Tq)
    eps = torch.finfo(dtype).eps
    assert bool(((call.result.double() - out).abs() <= 8 * eps * out).all()), f"value\n{call.source}"
    call.result.backward(upstream)
    equal(call.grad("x"), upstream.double() * mask, "dx")
    terms = upstream.double() * (out - mask * x.double()) / 3
    bound = eps * (8 + len(terms.flatten())) * float((upstream.double() * (out.abs() + x.abs())).abs().sum())
    assert abs(float(call.grad("scale")) - float(terms.sum())) <= bound, f"dscale\n{call.source}"
