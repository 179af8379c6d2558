"""Lemma A.1: the potential after the reset stays in [0, theta)."""

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given

from theorems import check
from theorems.impl import Loaded
from theorems.oracle import Q
from theorems.search import describe, smallest
from theorems.strategies import INSIDE, NEAR, NO_LEAK, TIE, Case, cases

LEMMA = "Lemma A.1"
PAPER = "lambda = 1, v(0) in [0, theta), all I(t) in [0, L*theta)"
EXACT = "exact cases, 4 dtypes"


def assert_stays(case: Case, call: check.Call, low: bool = True, high: bool = True) -> None:
    for neuron, train in enumerate(check.transposed(check.rationals(call.result[1]))):
        right = [v for v in train if (v >= 0 or not low) and (v < case.theta or not high)]
        expected = {"v in range": [right if n == neuron else [] for n in range(len(case.v0))]}
        check.same(
            case, LEMMA, expected, {"v in range": [train if n == neuron else [] for n in range(len(case.v0))]}, call
        )


def in_range(u: Fraction, current: Fraction, theta: Fraction, top: Fraction) -> bool:
    return 0 <= current < top


@pytest.mark.statement(LEMMA, precondition=PAPER, how=EXACT)
@given(cases(regimes=(INSIDE, TIE, NEAR), leaks=NO_LEAK, keep=in_range))
def test_multi_level(impl: Loaded, case: Case) -> None:
    assert_stays(case, check.mht(impl, case))


@pytest.mark.statement(LEMMA, precondition=PAPER, how=EXACT)
@given(cases(regimes=(INSIDE, TIE, NEAR), leaks=NO_LEAK, keep=in_range, spread=True))
def test_one_level(impl: Loaded, case: Case) -> None:
    assert_stays(case, check.integrate_and_fire(impl, case))


WEAKER = "v < theta: v(0) < theta, all I(t) < L*theta, 0 <= lambda <= 1; v >= 0: v(0) >= 0, all I(t) >= 0, lambda >= 0"


@pytest.mark.statement(LEMMA, precondition=WEAKER, how=EXACT)
@given(cases(leaks=(Q(1), Q(1, 2), Q(3, 4), Q(0)), keep=lambda u, current, theta, top: current < top))
def test_below_theta(impl: Loaded, case: Case) -> None:
    assert_stays(case, check.mht(impl, case), low=False)


@pytest.mark.statement(LEMMA, precondition=WEAKER, how=EXACT)
@given(cases(keep=lambda u, current, theta, top: current >= 0))
def test_not_negative(impl: Loaded, case: Case) -> None:
    assert_stays(case, check.mht(impl, case), high=False)


@pytest.mark.statement(LEMMA, precondition=PAPER, how="necessity: first counterexample by size, replayed")
@pytest.mark.parametrize("dropped", ["I(t) >= 0", "I(t) < L*theta", "v(0) >= 0", "v(0) < theta", "lambda <= 1"])
def test_necessity(impl: Loaded, dropped: str, counterexample: Callable[[str], None]) -> None:
    def fails(case: Case) -> bool:
        kept = {
            "I(t) >= 0": all(current < case.levels for current in case.train(0)),
            "I(t) < L*theta": all(current >= 0 for current in case.train(0)),
        }.get(dropped, all(0 <= current < case.levels for current in case.train(0)))
        kept = kept and {"v(0) >= 0": case.v0[0] < 1, "v(0) < theta": case.v0[0] >= 0}.get(dropped, 0 <= case.v0[0] < 1)
        return kept and not all(0 <= v < 1 for v in case.trace(0).v)

    case = smallest(fails, v0=None, leaks=(Q(3, 2),) if dropped.startswith("lambda") else NO_LEAK)
    call = check.mht(impl, case)
    check.same_as_oracle(case, "counterexample", call)
    v = ", ".join(str(v) for (v,) in check.rationals(call.result[1]))
    counterexample(f"{dropped} dropped: {describe(case, f'v = ({v})')}")
