"""Eqs. 8-9: autograd of the implementation against the equations written out; and QCFS's straight-through gradient (Eq. 4)."""

from fractions import Fraction
from math import inf

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from theorems import check, oracle
from theorems.conventions import CLIP, SURROGATE
from theorems.exact import of_sum, together
from theorems.impl import Loaded
from theorems.oracle import Q
from theorems.strategies import Case, mixed_cases, quantised_cases
from theorems.test_as_used import Use, terms

pytestmark = pytest.mark.gradient
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
    """Every element of every gradient; the sums over steps and neurons are checked to be exact in the dtype. With another
    surrogate, its own values at each potential stand for the window's, up to rounding."""
    case, rules, own = check.suited(impl, "lmht", case), impl.rules("lmht"), impl.has(SURROGATE)
    assert case.omega is not None
    count, steps = len(case.v0), range(case.steps)
    upstream = grid(values, case.steps, count)
    traces = case.traces(rules)
    windows = surrogates(impl, case, traces) if own else [None] * count
    parts = [
        oracle.lmht_gradients(
            case.train(n), [g[n] for g in upstream], levels=case.levels, theta=case.theta, omega=case.omega,
            leak=case.leak, v0=case.v0[n], rules=rules, windows=windows[n],
        )
        for n in range(count)
    ]  # fmt: skip
    sums = {(t, j): [part.omega[t][j] for part in parts] for t in steps for j in steps}
    largest = [abs(v) * 4 for v0, trace in zip(case.v0, traces, strict=True) for v in (v0, *trace.v)]
    assume(own or together(of_sum(*terms) for terms in (largest, *sums.values())).within(case.dtype))
    call = check.lmht(impl, case, gradient=True)
    call.backward(case.tensor(upstream))
    omega, leak = call.grad("omega"), call.grad("leak")
    dx = check.transposed(check.rationals(call.grad("x")))
    claim = f"Eqs. 8-9, dLoss/dout [T][N] = {'; '.join(map(check.train, upstream))}"
    want = [part.x for part in parts]
    check.same(case, claim, {"dx": want}, {"dx": close_to(want, dx) if own else dx}, call)
    for name, want, got in (
        ("domega", [[sum(sums[t, j], Q(0)) for j in steps] for t in steps], check.rationals(omega)),
        ("dleak", [[sum((part.leak for part in parts), Q(0))]], [[Fraction(leak.item())]]),
    ):
        got = close_to(want, got) if own else got
        for row, (expected, found) in enumerate(zip(want, got, strict=True)):
            if expected != found:
                raise check.MismatchError(
                    case, claim, 0, [f"{name}[{row}]"], {f"{name}[{row}]": (expected, found)}, [call]
                )


def surrogates(impl: Loaded, case: Case, traces: list[oracle.Trace]) -> list[list[Fraction]]:
    """The neuron's own d(out)/dm at every potential, ``[N][T]``: single steps without mixing or leak."""
    m = torch.tensor([[float(m) for trace in traces for m in trace.m]], dtype=case.dtype, requires_grad=True)
    one = torch.ones(1, 1, dtype=case.dtype)
    call = check.Call(impl, "lmht", m, levels=case.levels, theta=float(case.theta), omega=one, leak=one[0, 0])
    call.backward()
    values = check.rationals(call.grad("x"))[0]
    return [values[start : start + case.steps] for start in range(0, len(values), case.steps)]


def close_to(expected: list[list[Fraction]], got: list[list[Fraction]]) -> list[list[Fraction]]:
    """Got, with what rounding explains rounded to what was expected."""
    largest = max((abs(value) for row in expected for value in row), default=Q(0))
    return [
        [e if abs(e - g) <= Q(1, 10**4) * (largest + 1) else g for e, g in zip(*rows, strict=True)]
        for rows in zip(expected, got, strict=True)
    ]


@pytest.mark.statement(
    EQUATIONS, precondition="none: window edges theta/2 and (L + 1/2)*theta belong to the window", how=EXACT
)
@pytest.mark.parametrize("theta", [1.0, 0.5, 0.75, 1.25])
@pytest.mark.parametrize("levels", range(1, 9))
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_window_edges(impl: Loaded, levels: int, theta: float, dtype: torch.dtype) -> None:
    """The potential is x itself: one step, omega = 1, v(0) = 0. Beside an edge means the next float."""
    impl.follows(SURROGATE)
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


@pytest.mark.statement(EQUATIONS, precondition="none: x, Omega and lambda; s*theta has derivative 1 inside the window",
                       how="float cases, float64, 1000 neurons, up to rounding")  # fmt: skip
@pytest.mark.parametrize("steps", range(1, 7))
def test_random_floats(impl: Loaded, steps: int) -> None:
    impl.follows(SURROGATE)
    generator = torch.Generator().manual_seed(steps)
    levels, theta, leak, count = 3, 0.7, 0.9, 1000
    draws = [torch.randn(*shape, generator=generator, dtype=torch.float64)
             for shape in ((steps, count), (steps, count), (steps, steps), (count,))]  # fmt: skip
    x, g_out, omega, v0 = draws
    one = Use(x, omega, torch.tensor(leak, dtype=torch.float64), v0, g_out, levels=levels, theta=theta)
    call = one.call(impl)
    call.backward(g_out)
    g, before = terms(impl, one)
    gradients = {  # and the sums of their absolute terms
        "x": (omega.T @ g, omega.T.abs() @ g.abs()),
        "omega": (g @ x.T, g.abs() @ x.abs().T),
        "leak": ((g * before).sum(), (g * before).abs().sum()),
    }
    # n terms of a sum, each with errors of at most (8*T + n) roundings: no potential of these seeds is that close to an edge
    for name, (expected, size) in gradients.items():
        bound = torch.finfo(torch.float64).eps * (8 * steps + steps * count) * size
        error = (call.grad(name) - expected).abs()
        assert bool((error <= bound).all()), f"T = {steps}, d{name}: off by {error.max()}\n{call.source}"


STRAIGHT = "none: QCFS, dx = mask, dvartheta = (a - mask*x)/vartheta"


@pytest.mark.statement("Eq. 4 (QCFS)", precondition=STRAIGHT, how=EXACT)
@given(quantised_cases(dtypes=WIDE), upstreams)
def test_qcfs(impl: Loaded, case: Case, values: list[int]) -> None:
    Tq, scale, train = case.levels, case.theta, case.train(0)
    upstream = [row[0] for row in grid(values, len(train), 1)]
    masks = [oracle.qcfs_mask(x, levels=Tq, scale=scale, rules=impl.rules("qcfs")) for x in train]
    outs = [oracle.qcfs(x, levels=Tq, scale=scale) for x in train]
    terms = [g * (a - mask * x) / scale for g, a, mask, x in zip(upstream, outs, masks, train, strict=True)]
    pieces = [piece for g, a, x in zip(upstream, outs, train, strict=True) for piece in (g * a, g * x)]
    assume(together((of_sum(*pieces), *(of_sum(piece / scale) for piece in pieces))).within(case.dtype))
    x = case.tensor().requires_grad_()
    leaf = torch.tensor(float(scale), dtype=case.dtype, requires_grad=True)
    call = check.Call(impl, "qcfs", x, levels=Tq, scale=leaf)
    call.backward(case.tensor([[g] for g in upstream]))
    expected = [g * mask for g, mask in zip(upstream, masks, strict=True)]
    dx = [Fraction(value) for value in call.grad("x").flatten().tolist()]
    claim = f"Eq. 4, dLoss/dout = {check.train(upstream)}"
    check.same(case, claim, {"dx": [expected]}, {"dx": [dx]}, call)
    check.same(
        case,
        claim,
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
    impl.follows(CLIP)
    low, high = -scale / (2 * Tq), scale * (Tq + 0.5) / Tq
    beside = 2.0**-40  # relative; adding 1/2 to the very next float would round
    points = {low: 1, low * (1 + beside): 0, 0.0: 1, scale: 1, high * (1 - beside): 1, high: 0, 2 * high: 0, 4 * low: 0}
    x = torch.tensor(list(points), dtype=torch.float64, requires_grad=True)
    call = check.Call(impl, "qcfs", x, levels=Tq, scale=torch.tensor(scale, dtype=torch.float64))
    call.backward()
    got = call.grad("x").tolist()
    assert got == list(points.values()), f"mask at x = {list(points)}: {got}\n{call.source}"
