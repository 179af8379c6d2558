"""Corollary 4.3: a uniform current fires uniformly if and only if it lies in the uniform firing region."""

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theorems import check, oracle
from theorems.impl import Loaded
from theorems.oracle import Q
from theorems.search import describe, smallest
from theorems.strategies import NO_LEAK, UP_TO_8, Case, thresholds, with_dtype

COROLLARY = "Corollary 4.3"
PAPER = "lambda = 1, v(0) = 0, I(1) = ... = I(T)"
START = {
    PAPER: Q(0),
    "lambda = 1, v(0) = theta/2, region shifted by -theta/(2T)": Q(1, 2),
}


def in_region(case: Case, neuron: int, v0: Fraction) -> bool:
    return oracle.uniform_firing_region(
        case.currents[0][neuron], levels=case.levels, theta=case.theta, steps=case.steps, v0=v0
    )


@st.composite
def currents_around_the_edges(draw: st.DrawFn, start: Fraction) -> Case:
    """Uniform currents on the region's edges, one unit beside them, and anywhere from negative to saturated."""
    L, T = draw(st.sampled_from(UP_TO_8), label="L"), draw(st.sampled_from(UP_TO_8), label="T")
    theta, unit = draw(thresholds(2 * T), label="theta, unit")  # theta/T and theta/(2T) are multiples of the unit
    v0 = start * theta
    edge = st.tuples(st.integers(0, L), st.sampled_from((0, 1)), st.sampled_from((-1, 0, 1))).map(
        lambda e: e[0] * theta + e[1] * theta / T - v0 / T + e[2] * unit
    )
    width = int(theta / unit)
    current = st.one_of(edge, st.integers(-2 * L * width, 2 * L * width).map(lambda n: n * unit))
    row = tuple(draw(st.lists(current, min_size=1, max_size=4), label="I"))
    return with_dtype(draw, Case(L, theta, Q(1), (v0,) * len(row), (row,) * T, (len(row),)))


@pytest.mark.parametrize(
    "start", [pytest.param(v0, marks=pytest.mark.statement(COROLLARY, precondition=p, how="exact cases, 4 dtypes, both directions"))
              for p, v0 in START.items()], ids=["v0=0", "v0=half"],
)  # fmt: skip
@given(data=st.data())
def test_if_and_only_if(impl: Loaded, start: Fraction, data: st.DataObject) -> None:
    case = data.draw(currents_around_the_edges(start))
    call = check.mht(impl, case)
    trains = check.transposed(check.rationals(call.result[0]))
    inside = [[in_region(case, neuron, case.v0[neuron])] for neuron in range(len(trains))]
    uniform = [[len(set(train)) == 1] for train in trains]
    check.same(
        case,
        f"{COROLLARY}: uniform firing (got) iff in the region (expected)",
        {"uniform firing": inside},
        {"uniform firing": uniform},
        call,
    )
    for neuron, train in enumerate(trains):  # and the value is the k of the region
        if inside[neuron][0]:
            k = oracle.clip((case.currents[0][neuron] + case.v0[neuron] / case.steps) // case.theta, 0, case.levels)
            one = {"spikes": [[k] * case.steps if n == neuron else t for n, t in enumerate(trains)]}
            check.same(case, f"{COROLLARY}: k spikes a step", one, {"spikes": trains}, call)
            assert set(train) == {k}


@pytest.mark.statement(COROLLARY, precondition=PAPER, how="necessity: first counterexample by size, replayed")
@pytest.mark.parametrize("dropped", ["v(0) = 0", "I(1) = ... = I(T)", "lambda = 1"])
def test_necessity(impl: Loaded, dropped: str, counterexample: Callable[[str], None]) -> None:
    def fails(case: Case) -> bool:
        inside = in_region(case, 0, Q(0))
        return inside != (len(set(case.trace(0).s)) == 1)

    case = smallest(
        fails,
        uniform=not dropped.startswith("I"),
        v0=(Q(1, 2),) if dropped.startswith("v") else (Q(0),),
        leaks=(Q(1, 2),) if dropped.startswith("lambda") else NO_LEAK,
    )
    call = check.mht(impl, case)
    check.same_as_oracle(case, "counterexample", call)
    spikes = [int(s) for (s,) in check.rationals(call.result[0])]
    where = "inside" if in_region(case, 0, Q(0)) else "outside"
    counterexample(f"{dropped} dropped: {describe(case, f'I(1) {where} the region, emits {spikes}')}")
