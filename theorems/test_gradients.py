"""Eqs. 8-9: autograd of the implementation against the equations written out; and QCFS's straight-through gradient (Eq. 4)."""

from fractions import Fraction
from math import inf

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from theorems import check, oracle
from theorems.exact import fits, sum_is_exact
from theorems.impl import Loaded
from theorems.oracle import Q
from theorems.strategies import Case, mixed_cases, quantised_cases

EQUATIONS = "Eqs. 8-9 (gradients)"
EXACT = "exact cases, float64 and float32"
WIDE = (torch.float64, torch.float32)
upstreams = st.lists(st.integers(-4, 4), min_size=32, max_size=32)


def grid(values: list[int], rows: int, columns: int) -> list[list[Fraction]]:
    return [[Q(values[(row * columns + column) % len(values)]) for column in range(columns)] for row in range(rows)]


@pytest.mark.statement(
    EQUATIONS, precondition="none: x, Omega and lambda; s*theta has derivative 1 inside the window", how=EXACT
)
@given(mixed_cases(dtypes=WIDE), upstreams)
def test_lmht(impl: Loaded, case: Case, values: list[int]) -> None:
    """Every element of every gradient; the sums over steps and neurons are checked to be exact in the dtype."""
    assert case.omega is not None
    count, steps = len(case.v0), range(case.steps)
    upstream = grid(values, case.steps, count)
    parts = [
        oracle.lmht_gradients(
            case.train(n), [g[n] for g in upstream],
            levels=case.levels, theta=case.theta, omega=case.omega, leak=case.leak, v0=case.v0[n],
        )
        for n in range(count)
    ]  # fmt: skip
    sums = {(t, j): [part.omega[t][j] for part in parts] for t in steps for j in steps}
    largest = [abs(v) * 4 for n in range(count) for v in (case.v0[n], *case.trace(n).v)]
    assume(all(sum_is_exact(terms, case.dtype) for terms in (largest, *sums.values())))
    call = check.lmht(impl, case, gradient=True)
    call.backward(case.tensor(upstream))
    omega, leak = call.grad("omega"), call.grad("leak")
    dx = check.transposed(check.rationals(call.grad("x")))
    check.same(case, f"dLoss/dx, dLoss/dout = {upstream}", {"dx": [part.x for part in parts]}, {"dx": dx}, call)
    for name, expected, got in (
        ("domega", [[sum(sums[t, j], Q(0)) for j in steps] for t in steps], check.rationals(omega)),
        ("dleak", [[sum((part.leak for part in parts), Q(0))]], [[Fraction(leak.item())]]),
    ):
        text = f"{name}: expected {expected}, got {got}, dLoss/dout [T][N] = {upstream}"
        assert expected == got, check.message(case, text, 0, [name], {}, {}, [call])


@pytest.mark.statement(
    EQUATIONS, precondition="none: window edges theta/2 and (L + 1/2)*theta belong to the window", how=EXACT
)
@pytest.mark.parametrize("theta", [1.0, 0.5, 0.75, 1.25])
@pytest.mark.parametrize("levels", range(1, 9))
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_window_edges(impl: Loaded, levels: int, theta: float, dtype: torch.dtype) -> None:
    """The potential is x itself: one step, omega = 1, v(0) = 0. Beside an edge means the next float."""
    low, high = torch.tensor([theta / 2, (levels + 0.5) * theta], dtype=dtype)
    outward, inward = torch.tensor(-inf, dtype=dtype), torch.tensor(inf, dtype=dtype)
    m = torch.stack([low, torch.nextafter(low, outward), torch.nextafter(low, inward), high,
                     torch.nextafter(high, inward), torch.nextafter(high, outward), -low, -high, low * 0, high * 2])  # fmt: skip
    expected = [1, 0, 1, 1, 0, 1, 0, 0, 0, 0]
    x = m[None].clone().requires_grad_()
    one = torch.ones(1, 1, dtype=dtype)
    call = check.Call(impl, "lmht", x, levels=levels, theta=theta, omega=one, leak=one[0, 0])
    call.backward()
    assert x.grad is not None
    assert x.grad[0].tolist() == expected, (
        f"window at m = {m.tolist()}: {x.grad[0].tolist()} != {expected}\n{call.source}"
    )


def written_out(
    x: Tensor, g_out: Tensor, omega: Tensor, leak: float, v0: Tensor, levels: int, theta: float
) -> tuple[Tensor, ...]:
    """Eqs. 7-9 for a whole tensor: masks, then ``dx``, ``domega``, ``dleak``, and the sums of absolute terms of each."""
    currents, v, potentials, before = torch.einsum("tj,jn->tn", omega, x), v0, [], []
    for current in currents:
        m = leak * v + current
        before.append(v)
        potentials.append(m)
        v = m - (m / theta).floor().clamp(0, levels) * theta
    m, u = torch.stack(potentials), torch.stack(before)
    g = g_out * ((theta / 2 <= m) & (m <= (levels + 0.5) * theta))
    exact = (omega.T @ g, g @ x.T, (g * u).sum())
    return (*exact, omega.T.abs() @ g.abs(), g.abs() @ x.abs().T, (g * u).abs().sum())


@pytest.mark.statement(EQUATIONS, precondition="none: x, Omega and lambda; s*theta has derivative 1 inside the window",
                       how="float cases, float64, 1000 neurons, up to rounding")  # fmt: skip
@pytest.mark.parametrize("steps", range(1, 7))
def test_random_floats(impl: Loaded, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    levels, theta, leak, count = 3, 0.7, 0.9, 1000
    draws = [torch.randn(*shape, generator=generator, dtype=torch.float64)
             for shape in ((steps, count), (steps, count), (steps, steps), (count,))]  # fmt: skip
    x, g_out, omega, v0 = draws
    leaves = [value.clone().requires_grad_() for value in (x, omega, torch.tensor(leak, dtype=torch.float64))]
    call = check.Call(impl, "lmht", leaves[0], levels=levels, theta=theta, omega=leaves[1], leak=leaves[2], v0=v0)
    call.backward(g_out)
    dx, domega, dleak, *sizes = written_out(x, g_out, omega, leak, v0, levels, theta)
    # n terms of a sum, each with errors of at most (8*T + n) roundings: no potential of these seeds is that close to an edge
    for leaf, expected, size in zip(leaves, (dx, domega, dleak), sizes, strict=True):
        assert leaf.grad is not None
        bound = torch.finfo(torch.float64).eps * (8 * steps + steps * count) * size
        assert bool(((leaf.grad - expected).abs() <= bound).all()), (
            f"T = {steps}: off by {(leaf.grad - expected).abs().max()}\n{call.source}"
        )


STRAIGHT = "none: QCFS, dx = mask, dvartheta = (a - mask*x)/vartheta"


@pytest.mark.statement("Eq. 4 (QCFS)", precondition=STRAIGHT, how=EXACT)
@given(quantised_cases(dtypes=WIDE), upstreams)
def test_qcfs(impl: Loaded, case: Case, values: list[int]) -> None:
    Tq, scale, train = case.levels, case.theta, case.train(0)
    upstream = [row[0] for row in grid(values, len(train), 1)]
    masks = [oracle.qcfs_mask(x, levels=Tq, scale=scale) for x in train]
    outs = [oracle.qcfs(x, levels=Tq, scale=scale) for x in train]
    terms = [g * (a - mask * x) / scale for g, a, mask, x in zip(upstream, outs, masks, train, strict=True)]
    pieces = [piece for g, a, x in zip(upstream, outs, train, strict=True) for piece in (g * a, g * x)]
    assume(sum_is_exact(pieces, case.dtype) and all(fits(piece / scale, case.dtype) for piece in pieces))
    x = case.tensor().requires_grad_()
    leaf = torch.tensor(float(scale), dtype=case.dtype, requires_grad=True)
    call = check.Call(impl, "qcfs", x, levels=Tq, scale=leaf)
    call.backward(case.tensor([[g] for g in upstream]))
    expected = [g * mask for g, mask in zip(upstream, masks, strict=True)]
    dx = [Fraction(value) for value in call.grad("x").flatten().tolist()]
    check.same(case, f"dLoss/dx, dLoss/dout = {upstream}", {"dx": [expected]}, {"dx": [dx]}, call)
    check.same(
        case,
        f"dLoss/dscale, dLoss/dout = {upstream}",
        {"dscale": [[sum(terms)]]},
        {"dscale": [[Q(call.grad("scale").item())]]},
        call,
    )


@pytest.mark.statement(
    "Eq. 4 (QCFS)", precondition=STRAIGHT, how="mask edges -1/2 and Tq + 1/2 levels, and the floats beside them"
)
@pytest.mark.parametrize("Tq", [1, 2, 4, 8])
@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_qcfs_edges(impl: Loaded, Tq: int, scale: float) -> None:
    """Inside from level 0 (x = -1/2 level, a tie) up to, and not including, level Tq + 1."""
    low, high = -scale / (2 * Tq), scale * (Tq + 0.5) / Tq
    beside = 2.0**-40  # relative; adding 1/2 to the very next float would round
    points = {low: 1, low * (1 + beside): 0, 0.0: 1, scale: 1, high * (1 - beside): 1, high: 0, 2 * high: 0, 4 * low: 0}
    x = torch.tensor(list(points), dtype=torch.float64, requires_grad=True)
    call = check.Call(impl, "qcfs", x, levels=Tq, scale=torch.tensor(scale, dtype=torch.float64))
    call.backward()
    got = call.grad("x").tolist()
    assert got == list(points.values()), f"mask at x = {list(points)}: {got}\n{call.source}"
