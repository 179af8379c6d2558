"""Theorem 4.2 (ii): a uniform current makes ``sum_t s(t) = clip(floor((v(0) + sum_t I(t))/theta), 0, L*T)``, for every real I."""

from collections.abc import Callable
from math import floor

import pytest
from hypothesis import given

from theorems import check, oracle
from theorems.impl import Loaded
from theorems.oracle import Q, Trace
from theorems.search import describe, smallest
from theorems.strategies import INSIDE, NEAR, NO_LEAK, TIE, Case, cases, float_cases

THEOREM = "Theorem 4.2 (ii)"
PAPER = "lambda = 1, v(0) in [0, theta), I(1) = ... = I(T)"
EXACT = "exact cases, 4 dtypes"


def formula(case: Case, neuron: int) -> int:
    total = case.v0[neuron] + sum(case.train(neuron))
    return oracle.clip(floor(total / case.theta), 0, case.levels * case.steps)


def assert_formula(case: Case, trains: check.Trains, *calls: check.Call) -> None:
    expected = [[formula(case, neuron)] for neuron in range(len(case.v0))]
    check.same(
        case, THEOREM, {"sum of spikes": expected}, {"sum of spikes": [[sum(train)] for train in trains]}, *calls
    )


@pytest.mark.statement(THEOREM, precondition=PAPER, how=EXACT)
@given(cases(uniform=True, leaks=NO_LEAK))
def test_multi_level(impl: Loaded, case: Case) -> None:
    call = check.mht(impl, case)
    assert_formula(case, check.transposed(check.rationals(call.result[0])), call)


@pytest.mark.statement(THEOREM, precondition=PAPER, how=EXACT)
@given(cases(uniform=True, leaks=NO_LEAK, spread=True))
def test_one_level(impl: Loaded, case: Case) -> None:
    """The same sum from IF over L*T steps."""
    call = check.integrate_and_fire(impl, case)
    assert_formula(case, check.transposed(check.rationals(call.result[0])), call)


@pytest.mark.statement(THEOREM, precondition=PAPER, how="float cases, away from ties by the rounding error")
@given(float_cases(uniform=True))
def test_floats(impl: Loaded, case: Case) -> None:
    check.within_rounding(case, THEOREM, check.mht(impl, case))
    for neuron, trace in enumerate(case.traces()):  # and the equations keep the formula for any reals
        assert sum(trace.s) == formula(case, neuron), case


@pytest.mark.statement(
    THEOREM, precondition="lambda = 1, v(0) in [0, theta), all I(t) in [0, L*theta), uniform or not", how=EXACT
)
@given(cases(regimes=(INSIDE, TIE, NEAR), leaks=NO_LEAK, keep=lambda u, current, theta, top: 0 <= current < top))
def test_not_uniform_in_range(impl: Loaded, case: Case) -> None:
    """In the range of (i) the current needn't be uniform: the potential never leaves [0, theta), so nothing is lost."""
    call = check.mht(impl, case)
    assert_formula(case, check.transposed(check.rationals(call.result[0])), call)


@pytest.mark.statement(THEOREM, precondition=PAPER, how="necessity: first counterexample by size, replayed")
@pytest.mark.parametrize("dropped", ["I(1) = ... = I(T)", "v(0) >= 0", "v(0) < theta", "lambda = 1"])
def test_necessity(impl: Loaded, dropped: str, counterexample: Callable[[str], None]) -> None:
    def fails(case: Case) -> bool:
        trace: Trace = case.trace(0)
        kept = {"v(0) >= 0": case.v0[0] < 1, "v(0) < theta": case.v0[0] >= 0}.get(dropped, True)
        return kept and sum(trace.s) != formula(case, 0)

    case = smallest(
        fails,
        uniform=not dropped.startswith("I"),
        v0=None if dropped.startswith("v") else (Q(0),),
        leaks=(Q(1, 2),) if dropped.startswith("lambda") else NO_LEAK,
    )
    call = check.mht(impl, case)
    check.same_as_oracle(case, "counterexample", call)
    spikes = [int(s) for (s,) in check.rationals(call.result[0])]
    counterexample(
        f"{dropped} dropped: {describe(case, f'emits {spikes}, the formula says {formula(case, 0)} in all')}"
    )
