"""Theorem A.2: with ``b/L`` and ``omega/L`` on L x L blocks, a one-level neuron over L*T steps gets I(t)/L all through window t."""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from theorems import check, oracle
from theorems.impl import Loaded
from theorems.oracle import Q
from theorems.search import describe, smallest
from theorems.strategies import POWERS, UP_TO_8, WEIGHTS, Case, Grid, cases

THEOREM = "Theorem A.2"
WINDOW_SUM = "window sum: the layer before has equal spike sums in every window"
WINDOW = "equal spikes in a window: u = lambda*v(t-1) with A: u < theta and I < L*theta, or B: u >= 0 and I >= 0"


def blocks(omega: Grid, L: int) -> Grid:
    """``omega_hat``, ``[L*T, L*T]``."""
    return tuple(tuple(w / L for w in row for _ in range(L)) for row in omega for _ in range(L))


def in_region(u: Fraction, current: Fraction, theta: Fraction, top: Fraction) -> bool:
    return (u < theta and current < top) or (u >= 0 and current >= 0)


weights = st.sampled_from(WEIGHTS)


@pytest.mark.statement(
    THEOREM, precondition=WINDOW_SUM, how="exact cases of the equations, L, T <= 8, any split of the spikes"
)
@given(st.data())
def test_window_sum(data: st.DataObject) -> None:
    L, T = data.draw(st.sampled_from(UP_TO_8), label="L"), data.draw(st.sampled_from(UP_TO_8), label="T")
    omega: Grid = tuple(tuple(data.draw(weights) for _ in range(T)) for _ in range(T))
    weight, bias, theta = (
        data.draw(st.fractions(-2, 2, max_denominator=8), label=name) for name in ("W", "b", "theta")
    )
    train = data.draw(st.lists(st.integers(0, 1), min_size=L * T, max_size=L * T), label="s_IF")  # of the layer before
    x = [weight * s * theta + bias for s in oracle.windows(train, L)]
    thin = [weight * s * theta + bias / L for s in train]
    currents, thin_currents = oracle.mix(omega, x), oracle.mix(blocks(omega, L), thin)
    assert thin_currents == oracle.spread(currents, L)


@pytest.mark.statement(THEOREM, precondition=WINDOW, how="exact cases, 4 dtypes, leak between windows and none inside")
@given(cases(spread=True, v0="any", keep=in_region))
def test_window(impl: Loaded, case: Case) -> None:
    check.windowwise(impl, case).assert_agree(case, THEOREM)


@pytest.mark.statement(THEOREM, precondition=WINDOW, how="exact cases: two layers of the implementation, lambda = 1")
@given(cases(levels=POWERS, leaks=(Q(1),), spread=True, shapes=((1,), (2,)), keep=in_region), st.data())
def test_two_layers(impl: Loaded, case: Case, data: st.DataObject) -> None:
    """Layer one with the drawn currents, affine map, layer two with a T-GIM; compared up to the first window outside A and B."""
    L, T, theta = case.levels, case.steps, float(case.theta)
    count = len(case.v0)
    omega: Grid = tuple(tuple(data.draw(weights, label="Omega") for _ in range(T)) for _ in range(T))
    weight = torch.tensor([[float(data.draw(weights, label="W")) for _ in range(count)] for _ in range(count)]).double()
    bias = torch.tensor([float(data.draw(weights, label="b")) for _ in range(count)]).double()
    many, one = check.mht(impl, case), check.integrate_and_fire(impl, case)
    x = many.result[0].double() * theta @ weight.T + bias
    thin = one.result[0].double() * theta @ weight.T + bias / L
    leak, v0 = torch.ones(()).double(), theta / 2
    second = check.Call(impl, "lmht", x, levels=L, theta=theta, omega=rows(omega), leak=leak, v0=v0)
    hat = check.Call(impl, "lmht", thin, levels=1, theta=theta, omega=rows(blocks(omega, L)), leak=leak, v0=v0)
    out = check.transposed(check.rationals(second.result))
    windows = check.transposed(check.rationals(hat.result.reshape(T, L, count).sum(1)))
    for neuron, train in enumerate(check.transposed(check.rationals(x))):
        currents = oracle.mix(omega, train)
        trace = oracle.mht(currents, levels=L, theta=case.theta, v0=case.theta / 2)
        before = (case.theta / 2, *trace.v[:-1])
        inside = [in_region(u, i, case.theta, L * case.theta) for u, i in zip(before, currents, strict=True)]
        stop = inside.index(False) if False in inside else T
        layer = Case(L, case.theta, Q(1), (case.theta / 2,), tuple((i,) for i in train), (1,), omega=omega)
        expected = {
            "M-HT": [[s * case.theta for s in trace.s[:stop]]],
            "windows": [[s * case.theta for s in trace.s[:stop]]],
        }
        got = {"M-HT": [out[neuron][:stop]], "windows": [windows[neuron][:stop]]}
        check.same(layer, f"{THEOREM}, layer two", expected, got, many, one, second, hat)


def rows(omega: Grid) -> torch.Tensor:
    return torch.tensor([[float(w) for w in row] for row in omega], dtype=torch.float64)


@pytest.mark.statement(THEOREM, precondition=WINDOW, how="necessity: first counterexample by size, replayed")
@pytest.mark.parametrize("corner", ["u < 0 and I >= L*theta", "u >= theta and I < 0"])
def test_outside_the_regions(impl: Loaded, corner: str, counterexample: Callable[[str], None]) -> None:
    def fails(case: Case) -> bool:
        negative = case.v0[0] < 0 and case.currents[0][0] >= case.levels
        sides = check.both_by_oracle(case)
        return case.steps == 1 and negative == corner.startswith("u < 0") and sides.spikes != sides.windows

    case = smallest(fails, v0=None)
    assert not in_region(case.v0[0], case.currents[0][0], Q(1), Q(case.levels))
    counterexample(f"{corner}: {describe(case, check.replay(impl, case))}")


@pytest.mark.statement(THEOREM, precondition=WINDOW_SUM, how="necessity: b and omega must both be divided by L")
@pytest.mark.parametrize("kept", ["b", "omega"])
def test_both_are_divided(kept: str, counterexample: Callable[[str], None]) -> None:
    """The smallest case there is: L = 2, T = 1, one input."""
    omega, bias = ((Q(1),),), Q(1)
    hat = ((Q(1),) * 2,) * 2 if kept == "omega" else blocks(omega, 2)
    thin = oracle.mix(hat, [bias if kept == "b" else bias / 2] * 2)
    assert sum(thin) != bias
    counterexample(
        f"{kept} not divided: L = 2, T = 1, omega = 1, b = 1, no spikes: I(1) = 1, the window sums to {sum(thin)}"
    )
