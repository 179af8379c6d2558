"""Corollary 4.3, proved: the spikes of all steps are equal if and only if the current is in the uniform firing region.

The paper states it for v(0) = 0. Proved here, both directions, for all L, all T, all reals and **every v(0) in [0, theta)**:
all s(t) = k if and only if I - k*theta is in [-v(0)/T, (theta - v(0))/T), open downwards for k = 0 and upwards for k = L.
v(0) = 0 is the paper's region, v(0) = theta/2 shifts it down by theta/(2T).
"""

from collections.abc import Callable
from fractions import Fraction

import pytest

from theorems.impl import eager
from theorems.proofs.equations import SIZES, mht_count, thresholds_reached, unrolled
from theorems.proofs.replay import emitted
from theorems.proofs.solver import Term, prove, refute, smallest_counterexample, z3

COROLLARY = "Corollary 4.3"
PAPER = "lambda = 1, v(0) = 0, I(1) = ... = I(T)"
ANY_START = "lambda = 1, v(0) in [0, theta), I(1) = ... = I(T); region shifted by -v(0)/T"
INDUCTION = "both directions proved for all L, all T, all reals (z3, induction over steps)"

L, T, t, k = z3.Ints("L T t k")
v0, i = z3.Reals("v0 I")
r = i - k  # what every step leaves behind if it emits k
HYPOTHESES = [L >= 1, T >= 1, v0 >= 0, v0 < 1, k >= 0, k <= L]


def region(k: Term, levels: Term, steps: Term, start: Term) -> z3.BoolRef:
    """The currents under which every step emits k."""
    rest = steps * (i - k)
    return z3.And(z3.Or(k == 0, rest >= -start), z3.Or(k == levels, rest < 1 - start))


@pytest.mark.statement(COROLLARY, precondition=ANY_START, how=INDUCTION)
class TestIf:
    """In the region of k every step emits k: invariant ``v(t) = v(0) + t*r``."""

    def test_step_emits_k_and_keeps_the_invariant(self) -> None:
        """With 0 <= t < T, v(0) + (t+1)*r lies between v(0) and v(0) + T*r, which is where the region wants it."""
        m = v0 + t * r + i
        between = z3.And(z3.Implies(r >= 0, (t + 1) * r <= T * r), z3.Implies(r < 0, (t + 1) * r >= T * r))
        prove(between, under=[*HYPOTHESES, t >= 0, t < T])
        prove(
            z3.And(mht_count(m, L) == k, m - k == v0 + (t + 1) * r),
            under=[*HYPOTHESES, t >= 0, t < T, region(k, L, T, v0), between],
        )


@pytest.mark.statement(COROLLARY, precondition=ANY_START, how=INDUCTION)
class TestOnlyIf:
    """If every step emits k, the first and the last step alone put I into the region of k."""

    def test_potential_while_every_step_emits_k(self) -> None:
        v = z3.Real("v")
        prove(v + i - k == v0 + (t + 1) * r, under=[*HYPOTHESES, t >= 0, v == v0 + t * r])

    def test_first_and_last_step_decide(self) -> None:
        first, last = mht_count(v0 + i, L), mht_count(v0 + (T - 1) * r + i, L)
        prove(region(k, L, T, v0), under=[*HYPOTHESES, first == k, last == k])


@pytest.mark.statement(COROLLARY, precondition=PAPER, how=INDUCTION)
class TestThePapersRegion:
    def test_start_0(self) -> None:
        """[k, k + 1/T) for 0 <= k < L, I < 0, I >= L: the union of the regions of k = 0..L at v(0) = 0."""
        ours = z3.And(k >= 0, k <= L, region(k, L, T, z3.RealVal(0)))
        paper = z3.Or(
            z3.And(k >= 0, k < L, i >= k, T * (i - k) < 1),
            z3.And(k == 0, i < 0),
            z3.And(k == L, i >= L),
        )
        prove(ours == paper, under=[L >= 1, T >= 1])

    @pytest.mark.statement(
        COROLLARY, precondition="lambda = 1, v(0) = theta/2, region shifted by -theta/(2T)", how=INDUCTION
    )
    def test_start_half(self) -> None:
        """Shifted down by 1/(2T): I is in it where I + 1/(2T) is in the paper's; y is that shifted current."""
        y = z3.Real("y")
        ours = z3.And(k >= 0, k <= L, region(k, L, T, z3.Q(1, 2)))
        shifted = z3.Or(
            z3.And(k >= 0, k < L, y >= k, T * (y - k) < 1),
            z3.And(k == 0, y < 0),
            z3.And(k == L, y >= L),
        )
        prove(ours == shifted, under=[L >= 1, T >= 1, 2 * T * (y - i) == 1])

    def test_planted_falsehood_is_refuted(self) -> None:
        """The region closed at its upper end is not the region: I = k + 1/T emits one more in the last step."""
        closed = z3.And(i >= k, T * (i - k) <= 1)
        refute(mht_count((T - 1) * r + i, L) == k, under=[L >= 1, T == 4, k >= 0, k < L, closed])


@pytest.mark.statement(COROLLARY, precondition=PAPER, how="cross-check: unrolled for every L*T <= 16, all reals (z3)")
@pytest.mark.parametrize(("levels", "steps"), SIZES)
def test_unrolled(levels: int, steps: int) -> None:
    """Both directions at once, everything written out: at v(0) = 0, at theta/2, and at every v(0) in [0, theta)."""
    spikes, _ = unrolled([i] * steps, levels, v0)
    equal = z3.And([s == spikes[0] for s in spikes[1:]])
    inside = z3.Or([region(z3.RealVal(k), z3.RealVal(levels), steps, v0) for k in range(levels + 1)])
    prove(equal == inside, under=[v0 >= 0, v0 < 1])
    paper = z3.Or(i < 0, i >= levels, *(z3.And(i >= k, i < k + z3.Q(1, steps)) for k in range(levels)))
    prove(equal == paper, under=[v0 == 0])
    half = z3.substitute(paper, (i, i + z3.Q(1, 2 * steps)))
    prove(equal == half, under=[v0 == z3.Q(1, 2)])
    if steps > 1:
        refute(equal, under=[v0 == 0])
        refute(equal == paper, under=[v0 == z3.Q(1, 2)])


@pytest.mark.statement(COROLLARY, precondition=PAPER, how="necessity: z3 finds a counterexample, replayed in floats")
@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("dropped", ["v(0) = 0", "I(1) = ... = I(T)", "lambda = 1"])
def test_without_one_condition(levels: int, dropped: str, counterexample: Callable[[str], None]) -> None:
    """T = 4, where the region leaves something out. Uniform currents: "equal" and "in the region" must come apart; uneven
    ones: every I(t) is in the region of the same k, and the spikes differ all the same."""
    steps, leak = 4, Fraction(1, 2) if dropped == "lambda = 1" else Fraction(1)
    currents = z3.Reals([f"I{t}" for t in range(steps)])
    if dropped != "I(1) = ... = I(T)":
        currents = [currents[0]] * steps
    v, spikes = v0, []
    for x in currents:
        m = z3.Q(leak.numerator, leak.denominator) * v + x
        spikes.append(thresholds_reached(m, levels))
        v = m - spikes[-1]
    equal = z3.And([s == spikes[0] for s in spikes[1:]])
    inside = z3.Or([
        z3.And([z3.substitute(region(z3.RealVal(k), z3.RealVal(levels), steps, z3.RealVal(0)), (i, x)) for x in currents])
        for k in range(levels + 1)
    ])  # fmt: skip
    start = [v0 >= 0, v0 < 1] if dropped == "v(0) = 0" else [v0 == 0]
    begin, *values = smallest_counterexample(equal == inside, [v0, *currents], under=start)

    got = emitted(eager, levels=levels, v0=begin, currents=values, leak=leak)
    predicted = any(
        all((k == 0 or x >= k) and (k == levels or x < k + Fraction(1, steps)) for x in values)
        for k in range(levels + 1)
    )
    assert (len(set(got)) == 1) != predicted
    where = "inside" if predicted else "outside"
    text = (
        f"{dropped} dropped: L = {levels}, T = {steps}, theta = 1, lambda = {leak}, v(0) = {begin}, "
        f"I = ({', '.join(map(str, values))}), {where} the region, emits {got}"
    )
    (counterexample if levels == 2 else print)(text)
