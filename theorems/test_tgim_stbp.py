"""T-GIM to STBP: Omega = identity, L = 1 is the LIF network; backward it is the spatial part of STBP, as its chain is detached."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmht import functional
from theorems import check, oracle
from theorems.conventions import SURROGATE
from theorems.impl import Loaded
from theorems.oracle import Q
from theorems.strategies import POWERS, Case, identity, mixed_cases
from theorems.test_gradients import close_to, surrogates

STATEMENT = "T-GIM to STBP"
PAPER = "Omega = identity, L = 1"
neurons = mixed_cases(levels=(1,), mixing="identity")
differentiable = mixed_cases(levels=(1,), mixing="identity", dtypes=(torch.float64,), multiples=POWERS)
gradients = st.lists(
    st.integers(-4, 4), min_size=32, max_size=32
)  # dLoss/dout, one for each of at most 8 steps x 4 neurons


def spread(case: Case, values: list[int]) -> list[list[Q]]:
    """``upstream[N][T]``, the drawn numbers repeated."""
    return [[Q(values[(t + case.steps * n) % len(values)]) for t in range(case.steps)] for n in range(len(case.v0))]


@pytest.mark.statement(STATEMENT, precondition=PAPER, how="forward: exact cases, 4 dtypes")
@given(neurons)
def test_forward(impl: Loaded, case: Case) -> None:
    mixed = check.lmht(impl, case)
    lif = check.integrate_and_fire(impl, case)
    out, spikes = (check.transposed(check.rationals(values)) for values in (mixed.result, lif.result[0]))
    expected = [[s * case.theta for s in trace.s] for trace in case.traces(impl.rules("lmht"))]
    got = {"lmht": out, "LIF": [[s * case.theta for s in train] for train in spikes]}
    check.same(case, STATEMENT, {"lmht": expected, "LIF": expected}, got, mixed, lif)


@pytest.mark.statement(
    STATEMENT, precondition=PAPER, how="backward, chain detached: spatial-only gradient, exact cases"
)
@pytest.mark.gradient
@given(differentiable, gradients)
def test_backward_is_spatial_only(impl: Loaded, case: Case, values: list[int]) -> None:
    case, own = check.suited(impl, "lmht", case), impl.has(SURROGATE)
    call, upstream = check.lmht(impl, case, gradient=True), spread(case, values)
    call.backward(case.tensor(check.transposed(upstream)))
    traces = case.traces(impl.rules("lmht"))
    windows = [[Q(oracle.window(m, levels=1, theta=case.theta)) for m in trace.m] for trace in traces]
    windows = surrogates(impl, case, traces) if own else windows
    expected = [[a * slope for a, slope in zip(*pair, strict=True)] for pair in zip(upstream, windows, strict=True)]
    got = check.transposed(check.rationals(call.grad("x")))
    check.same(case, STATEMENT, {"dLoss/dx": expected}, {"dLoss/dx": close_to(expected, got) if own else got}, call)


def stbp(case: Case, upstream: list[list[Q]], chain: bool) -> list[list[Q]]:
    """Autograd of ``lmht.functional.integrate_and_fire``, which can keep the chain; the layer passes on ``s * theta``."""
    x = case.tensor().requires_grad_()
    theta, leak = float(case.theta), float(case.leak)
    spikes, _ = functional.integrate_and_fire(x, theta=theta, leak=leak, v0=case.v0_tensor, temporal_gradient=chain)
    (spikes * theta).backward(case.tensor(check.transposed(upstream)))
    assert x.grad is not None
    return check.transposed(check.rationals(x.grad))


@pytest.mark.statement(
    STATEMENT, precondition=PAPER, how="backward, chain kept: lmht.functional.integrate_and_fire = STBP, exact cases"
)
@given(differentiable, gradients)
def test_chain_kept(ours: None, case: Case, values: list[int]) -> None:
    upstream = spread(case, values)
    expected = [
        oracle.stbp_gradient(trace, g, theta=case.theta, leak=case.leak)
        for trace, g in zip(case.traces(), upstream, strict=True)
    ]
    check.same(case, "STBP", {"dLoss/dx": expected}, {"dLoss/dx": stbp(case, upstream, chain=True)})


@pytest.mark.statement(
    STATEMENT,
    precondition="backward equals STBP: the temporal chain is kept",
    how="necessity: counterexample, replayed",
)
@pytest.mark.gradient
def test_the_two_differ(impl: Loaded, counterexample: Callable[[str], None]) -> None:
    """m = (1/4, 5/4): only step 2 is inside the window, and only the chain tells step 1."""
    impl.follows(SURROGATE)
    case = Case(1, Q(1), Q(1), (Q(0),), ((Q(1, 4),), (Q(1),)), (1,), omega=identity(2))
    upstream = [[Q(1), Q(1)]]
    call = check.lmht(impl, case, gradient=True)
    call.backward(case.tensor(check.transposed(upstream)))
    detached = check.transposed(check.rationals(call.grad("x")))
    kept = stbp(case, upstream, chain=True)
    check.same(case, "chain detached", {"dLoss/dx": [[Q(0), Q(1)]]}, {"dLoss/dx": detached}, call)
    check.same(case, "chain kept", {"dLoss/dx": [[Q(1), Q(1)]]}, {"dLoss/dx": kept})
    assert stbp(case, upstream, chain=False) == detached != kept
    counterexample(
        "chain detached: theta = 1, v(0) = 0, I = (1/4, 1), dLoss/dout = (1, 1): dLoss/dI = (0, 1), STBP has (1, 1)"
    )
