"""Theorem 4.2 (i): over T windows, M-HT's spikes and potentials are those of an IF neuron of L*T steps that gets I(t)/L."""

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given

from theorems import check
from theorems.impl import Loaded
from theorems.oracle import Q
from theorems.search import describe, smallest
from theorems.strategies import INSIDE, NEAR, NO_LEAK, TIE, Case, cases

THEOREM = "Theorem 4.2 (i)"
PAPER = "lambda = 1, v(0) in [0, theta), all I(t) in [0, L*theta)"
EXACT = "exact cases, 4 dtypes"


def in_range(u: Fraction, current: Fraction, theta: Fraction, top: Fraction) -> bool:
    return 0 <= current < top


@pytest.mark.statement(THEOREM, precondition=PAPER, how=EXACT)
@given(cases(regimes=(INSIDE, TIE, NEAR), leaks=NO_LEAK, spread=True, keep=in_range))
def test_paper(impl: Loaded, case: Case) -> None:
    check.both(impl, case).assert_agree(case, THEOREM)


@pytest.mark.statement(THEOREM, precondition=PAPER, how=EXACT)
@given(cases(regimes=(INSIDE, TIE, NEAR), leaks=NO_LEAK, spread=True, keep=in_range))
def test_one_level_neuron(impl: Loaded, case: Case) -> None:
    """The windows of the one-level neuron are the equations' M-HT counts, whatever the implementation's own M-HT does."""
    call = check.integrate_and_fire(impl, case)
    windows = [[sum(train[t : t + case.levels]) for t in range(0, len(train), case.levels)]
               for train in check.transposed(check.rationals(call.result[0]))]  # fmt: skip
    check.same(case, THEOREM, {"windows": [trace.s for trace in case.traces()]}, {"windows": windows}, call)


@pytest.mark.statement(THEOREM, precondition="all I(t) in [0, L*theta); any v(0), any lambda", how=EXACT)
@given(cases(regimes=(INSIDE, TIE, NEAR), spread=True, v0="any", keep=in_range))
def test_any_start(impl: Loaded, case: Case) -> None:
    """The range of v(0) isn't needed: below theta it is region A, from 0 up it is B. The leak acts between windows only."""
    check.windowwise(impl, case).assert_agree(case, THEOREM)


@pytest.mark.statement(THEOREM, precondition="v(0) < theta, all I(t) < L*theta, 0 <= lambda <= 1", how=EXACT)
@given(cases(leaks=(Q(1), Q(1, 2), Q(3, 4), Q(0)), spread=True, keep=lambda u, current, theta, top: current < top))
def test_negative_currents(impl: Loaded, case: Case) -> None:
    check.windowwise(impl, case).assert_agree(case, THEOREM)


@pytest.mark.statement(THEOREM, precondition="v(0) >= 0, all I(t) >= 0, lambda >= 0", how=EXACT)
@given(cases(spread=True, keep=lambda u, current, theta, top: current >= 0))
def test_saturating_currents(impl: Loaded, case: Case) -> None:
    check.windowwise(impl, case).assert_agree(case, THEOREM)


@pytest.mark.statement(THEOREM, precondition=PAPER, how="necessity: first counterexample by size, replayed")
@pytest.mark.parametrize("dropped", ["I(t) >= 0 and I(t) < L*theta", "lambda = 1, also inside the windows,"])
def test_necessity(impl: Loaded, dropped: str, counterexample: Callable[[str], None]) -> None:
    """One half of the range of I alone may go (above). A leak at every one of the L*T steps breaks the equality."""

    def fails(case: Case) -> bool:
        kept = case.leak == 1 or all(0 <= current < case.levels for current in case.train(0))
        sides = check.both_by_oracle(case)
        return kept and sides.spikes != sides.windows

    case = smallest(fails, leaks=NO_LEAK if dropped.startswith("I") else (Q(1, 2),))
    assert case.levels == 2, "L = 1 never fails"
    counterexample(f"{dropped} dropped: {describe(case, check.replay(impl, case))}")
