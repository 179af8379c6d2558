"""Lemma 4.1: one M-HT step with current I is L IF steps with current I/L, from the same potential in [0, theta), for every I."""

from collections.abc import Callable
from math import floor

import pytest
from hypothesis import given

from theorems import check, oracle
from theorems.impl import Loaded
from theorems.search import describe, smallest
from theorems.strategies import NO_LEAK, Case, cases, float_cases

LEMMA = "Lemma 4.1"
PAPER = "v(t-1) in [0, theta)"
exact = pytest.mark.statement(LEMMA, precondition=PAPER, how="exact cases, 4 dtypes")
one_window = cases(steps=(1,), leaks=NO_LEAK, spread=True)


def clipped_floor(case: Case) -> list[list[int]]:
    """The lemma's right side: ``clip(floor((v + I)/theta), 0, L)``."""
    sums = zip(case.v0, case.currents[0], strict=True)
    return [[oracle.clip(floor((v + current) / case.theta), 0, case.levels)] for v, current in sums]


@exact
@given(one_window)
def test_multi_level_step(impl: Loaded, case: Case) -> None:
    call = check.mht(impl, case)
    spikes = check.transposed(check.rationals(call.result[0]))
    check.same(case, "clipped floor", {"spikes": clipped_floor(case)}, {"spikes": spikes}, call)


@exact
@given(one_window)
def test_one_level_steps(impl: Loaded, case: Case) -> None:
    call = check.integrate_and_fire(impl, case)
    spikes = [[sum(train)] for train in check.transposed(check.rationals(call.result[0]))]
    check.same(case, "L IF steps sum to the clipped floor", {"spikes": clipped_floor(case)}, {"spikes": spikes}, call)


@exact
@given(one_window)
def test_equal(impl: Loaded, case: Case) -> None:
    check.both(impl, case).assert_agree(case, LEMMA)


@pytest.mark.statement(LEMMA, precondition=PAPER, how="float cases, away from ties by the rounding error")
@given(float_cases(uniform=True, steps=(1,)))
def test_floats(impl: Loaded, case: Case) -> None:
    """I/L rounds here, as it does for L = 3 in practice: the counts are equal unless a potential is within rounding of a tie."""
    found, bound = check.both(impl, case), check.rounding(case)
    for neuron, v0 in enumerate(case.v0):
        thin = oracle.integrate_and_fire(oracle.spread(case.train(neuron), case.levels), theta=case.theta, v0=v0)
        ties = check.near_tie(case.trace(neuron).m, case.levels, case.theta, bound)
        if not ties and not check.near_tie(thin.m, 1, case.theta, bound):
            one = Case(case.levels, case.theta, case.leak, (v0,), ((case.currents[0][neuron],),), (1,), case.dtype)
            spikes, windows = (
                {"spikes": found.spikes[neuron : neuron + 1]},
                {"spikes": found.windows[neuron : neuron + 1]},
            )
            check.same(one, LEMMA, spikes, windows, *found.calls)


@pytest.mark.statement(LEMMA, precondition="none, for L = 1", how="exact cases, 4 dtypes")
@given(cases(levels=(1,), leaks=NO_LEAK, v0="any", spread=True))
def test_one_level_needs_nothing(impl: Loaded, case: Case) -> None:
    check.both(impl, case).assert_agree(case, LEMMA)


@pytest.mark.statement(LEMMA, precondition=PAPER, how="necessity: first counterexample by size, replayed")
@pytest.mark.parametrize("dropped", ["v(t-1) >= 0", "v(t-1) < theta"])
def test_necessity(impl: Loaded, dropped: str, counterexample: Callable[[str], None]) -> None:
    def fails(case: Case) -> bool:
        kept = case.v0[0] < case.theta if dropped == "v(t-1) >= 0" else case.v0[0] >= 0
        sides = check.both_by_oracle(case)
        return kept and case.steps == 1 and sides.spikes != sides.windows

    case = smallest(fails, v0=None)
    assert case.levels == 2, "L = 1 never fails"
    counterexample(f"{dropped} dropped: {describe(case, check.replay(impl, case))}")
