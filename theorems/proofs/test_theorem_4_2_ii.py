"""Theorem 4.2 (ii), proved: under a current that is the same in every step, the spikes of T steps are one clipped floor.

The same two regions and invariants as Lemma 4.1, one scale up: T steps of an M-HT neuron are to L*T levels what L steps of an
IF neuron are to L levels. Proved for all L, all T and all reals by induction over steps; ``n`` stands for L*t, so that every
query is linear. v(0) in [0, theta] is necessary and sufficient for every T > 1; uniformity is not necessary inside the range.
"""

from collections.abc import Callable
from fractions import Fraction
from math import floor

import pytest

from theorems.impl import eager
from theorems.proofs.equations import SIZES, mht_count, thresholds_reached, unrolled
from theorems.proofs.replay import emitted
from theorems.proofs.solver import prove, refute, smallest_counterexample, z3

THEOREM = "Theorem 4.2 (ii)"
PAPER = "lambda = 1, v(0) in [0, theta), I(1) = ... = I(T)"
INDUCTION = "proved for all L, all T, all reals (z3, induction over steps)"

L, n, c = z3.Ints("L n c")
v, v0, i, total = z3.Reals("v v0 I total")
s = mht_count(v + i, L)


def invariant_a(n: z3.ArithRef, v: z3.ArithRef, c: z3.ArithRef) -> z3.BoolRef:
    """I < L*theta, v(0) < theta: below threshold, and a neuron that has fired has a potential and a current >= 0."""
    return z3.And(v < 1, c >= 0, c <= n, z3.Or(c == 0, z3.And(i >= 0, v >= 0)))


def invariant_b(n: z3.ArithRef, v: z3.ArithRef, c: z3.ArithRef) -> z3.BoolRef:
    """I >= 0, v(0) >= 0: not negative, and every step saturated or the neuron has come below threshold for good."""
    return z3.And(v >= 0, c >= 0, c <= n, z3.Or(c == n, z3.And(i < L, v < 1)))


REGIONS = {"A": (i < L, v0 < 1, invariant_a), "B": (i >= 0, v0 >= 0, invariant_b)}


@pytest.mark.statement(
    THEOREM,
    precondition="lambda = 1, I uniform; A: v(0) < theta and I < L*theta, or B: v(0) >= 0 and I >= 0",
    how=INDUCTION + ", weaker than the paper's",
)
@pytest.mark.parametrize("region", REGIONS)
class TestInsideARegion:
    """Potential v and c spikes in all after t steps, ``n = L*t``."""

    def test_invariant_holds_at_the_start(self, region: str) -> None:
        current, start, invariant = REGIONS[region]
        prove(invariant(0, v0, 0), under=[L >= 1, current, start])

    def test_step_keeps_the_invariant(self, region: str) -> None:
        current, _, invariant = REGIONS[region]
        prove(invariant(n + L, v + i - s, c + s), under=[L >= 1, n >= 0, current, invariant(n, v, c)])

    def test_conclusion(self, region: str) -> None:
        """At the end ``n = L*T``, and v + c is v(0) + the sum of all currents (next test)."""
        _, _, invariant = REGIONS[region]
        prove(c == mht_count(v + c, n), under=[L >= 1, n >= 1, invariant(n, v, c)])

    def test_charge_is_conserved(self, region: str) -> None:
        """``v + c = v(0) + sum of the currents``, after every step."""
        prove((v + i - s) + (c + s) == v0 + (total + i), under=[v + c == v0 + total])

    def test_planted_falsehood_is_refuted(self, region: str) -> None:
        """One level fewer in the step does not lead to L*T levels in the sum."""
        current, _, invariant = REGIONS[region]
        fewer = mht_count(v + i, L - 1)
        refute(
            invariant(n + L, v + i - fewer, c + fewer),
            under=[L >= 2, n >= 0, current, invariant(n, v, c)],
        )


@pytest.mark.statement(THEOREM, precondition=PAPER, how=INDUCTION)
def test_the_regions_cover_the_papers_precondition() -> None:
    prove(z3.Or(z3.And(i < L, v0 < 1), z3.And(i >= 0, v0 >= 0)), under=[L >= 1, v0 >= 0, v0 < 1])


def claim(levels: int, start: z3.ArithRef, currents: list[z3.ArithRef]) -> z3.BoolRef:
    spikes, _ = unrolled(currents, levels, start)
    return z3.Sum(spikes) == thresholds_reached(start + z3.Sum(currents), levels * len(currents))


@pytest.mark.statement(THEOREM, precondition=PAPER, how="cross-check: unrolled for every L*T <= 16, all reals (z3)")
@pytest.mark.parametrize(("levels", "steps"), SIZES)
def test_unrolled(levels: int, steps: int) -> None:
    uniform = claim(levels, v0, [i] * steps)
    prove(uniform, under=[v0 >= 0, v0 < 1])
    prove(uniform, under=[z3.Or(z3.And(i < levels, v0 < 1), z3.And(i >= 0, v0 >= 0))])
    if steps > 1:
        refute(uniform)
        refute(claim(levels, v0, z3.Reals([f"I{t}" for t in range(steps)])), under=[v0 >= 0, v0 < 1])


@pytest.mark.statement(
    THEOREM,
    precondition="lambda = 1, v(0) in [0, theta), all I(t) in [0, L*theta), uniform or not",
    how=INDUCTION + ", weaker than the paper's where I is in range",
)
class TestUnevenCurrentsInRange:
    """Uniformity is not needed where nothing saturates and nothing is negative: v(T) in [0, theta) decides the sum."""

    def test_step_keeps_the_potential(self) -> None:
        now = v + i - s
        prove(z3.And(now >= 0, now < 1), under=[L >= 1, v >= 0, v < 1, i >= 0, i < L])

    def test_conclusion(self) -> None:
        prove(c == mht_count(v + c, n), under=[v >= 0, v < 1, c >= 0, c <= n])


@pytest.mark.statement(
    THEOREM,
    precondition="lambda = 1, I uniform: v(0) in [0, theta], necessary and sufficient for T > 1",
    how="proved for all L, all T, all reals (z3)",
)
class TestExactlyTheClosedInterval:
    """For T > 1 the statement holds for every uniform I if and only if 0 <= v(0) <= theta; ``n = L*T``."""

    T = z3.Int("T")

    def test_theta_itself_is_allowed(self) -> None:
        """v(0) = theta: I >= 0 is region B; with I < 0 the first step is silent and leaves region A's start behind."""
        silent = z3.And(mht_count(v0 + i, L) == 0, v0 + i < 1, i < L)
        prove(z3.Or(i >= 0, silent), under=[L >= 1, v0 == 1])

    def test_below_0_some_current_breaks_it(self) -> None:
        """I = L - v(0)/T: the first step does not saturate, so the sum stays below L*T, but v(0) + T*I = L*T."""
        prove(
            z3.And(mht_count(v0 + i, L) < L, mht_count(v0 + total, n) == n),
            under=[L >= 1, self.T > 1, n == L * self.T, v0 < 0, total == self.T * i, total == n - v0],
        )

    def test_above_theta_some_current_breaks_it(self) -> None:
        """I = theta - v(0): the first step fires, but v(0) + T*I < theta."""
        prove(
            z3.And(mht_count(v0 + i, L) > 0, mht_count(v0 + total, n) == 0),
            under=[L >= 1, self.T > 1, n == L * self.T, v0 > 1, total == self.T * i, i == 1 - v0],
        )


@pytest.mark.statement(THEOREM, precondition=PAPER, how="necessity: z3 finds a counterexample, replayed in floats")
@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("dropped", ["v(0) >= 0", "v(0) < theta", "I(1) = ... = I(T)", "lambda = 1"])
def test_without_one_condition(levels: int, dropped: str, counterexample: Callable[[str], None]) -> None:
    first, second = z3.Reals("first second")
    kept = {"v(0) >= 0": v0 >= 0, "v(0) < theta": v0 < 1, "I(1) = ... = I(T)": first == second}
    kept.pop(dropped, None)
    leak = Fraction(1, 2) if dropped == "lambda = 1" else Fraction(1)
    factor = z3.Q(leak.numerator, leak.denominator)
    s1 = thresholds_reached(factor * v0 + first, levels)
    s2 = thresholds_reached(factor * (factor * v0 + first - s1) + second, levels)
    broken = s1 + s2 == thresholds_reached(v0 + first + second, 2 * levels)
    start, *currents = smallest_counterexample(broken, [v0, first, second], under=[*kept.values()])

    got = emitted(eager, levels=levels, v0=start, currents=currents, leak=leak)
    predicted = min(max(floor(start + sum(currents)), 0), 2 * levels)
    assert sum(got) != predicted
    text = (
        f"{dropped} dropped: L = {levels}, theta = 1, lambda = {leak}, v(0) = {start}, I = ({currents[0]}, {currents[1]}): "
        f"emits {got}, the formula says {predicted} in all"
    )
    (counterexample if levels == 2 else print)(text)
