"""Lemma 4.1, proved: one M-HT step with current I emits what L IF steps with I/L emit, from the same potential.

The paper asks for v(t-1) in [0, theta). Proved here for all L and all reals: two regions A and B in which it holds, one
invariant each; that they cover the paper's precondition; and that for every L > 1 it holds for every I **if and only if**
v(t-1) is in [0, theta], the upper end included.
"""

from collections.abc import Callable

import pytest

from theorems.impl import eager
from theorems.proofs.equations import REGIONS, if_count, mht_count, region_a, region_b, thresholds_reached, unrolled
from theorems.proofs.replay import show
from theorems.proofs.solver import prove, refute, smallest_counterexample, z3

LEMMA = "Lemma 4.1"
PAPER = "v(t-1) in [0, theta)"
in_general = pytest.mark.statement(LEMMA, precondition=PAPER, how="proved for all L and all reals (z3)")

L, j, c, k = z3.Ints("L j c k")
u, d, v, i, m, x, theta = z3.Reals("u d v I m x theta")


@in_general
def test_theta_is_1_without_loss_of_generality() -> None:
    """m reaches the threshold ``k*theta`` exactly when ``x = m/theta`` reaches k."""
    prove((m >= k * theta) == (x >= k), under=[theta > 0, x * theta == m])


@pytest.mark.statement(
    LEMMA,
    precondition="A: v(t-1) < theta and I < L*theta, or B: v(t-1) >= 0 and I >= 0",
    how="proved for all L and all reals (z3), weaker than the paper's",
)
@pytest.mark.parametrize("region", REGIONS)
class TestInsideARegion:
    """Potential v and count c of the IF neuron after j of the L steps of the window, each with the current d = I/L."""

    def test_invariant_holds_at_the_start(self, region: str) -> None:
        inside, invariant = REGIONS[region]
        prove(invariant(d, 0, u, 0), under=[inside(u, d)])

    def test_step_keeps_the_invariant(self, region: str) -> None:
        _, invariant = REGIONS[region]
        s = if_count(v + d)
        current = d < 1 if region == "A" else d >= 0
        prove(invariant(d, j + 1, v + d - s, c + s), under=[current, j >= 0, j < L, invariant(d, j, v, c)])

    def test_conclusion_equal_spikes_and_potential(self, region: str) -> None:
        """After L steps v + c = u + I (next test), so c is the M-HT count of u + I, and v = u + I - c its potential."""
        _, invariant = REGIONS[region]
        prove(c == mht_count(v + c, L), under=[L >= 1, invariant(d, L, v, c)])

    def test_charge_is_conserved(self, region: str) -> None:
        """Current in, spikes out: ``v + c = u + j*d`` after j steps, in either region."""
        s = if_count(v + d)
        prove((v + d - s) + (c + s) == u + (j + 1) * d, under=[v + c == u + j * d])

    def test_planted_falsehood_is_refuted(self, region: str) -> None:
        """A neuron that fires on > instead of >= does not keep the conclusion: ties matter, and the encoding sees them."""
        _, invariant = REGIONS[region]
        late = z3.If(v + d > 1, 1, 0)
        refute(invariant(d, j + 1, v + d - late, c + late), under=[j >= 0, j < L, d >= 0, d < 1, invariant(d, j, v, c)])


@in_general
def test_the_regions_cover_the_papers_precondition() -> None:
    prove(z3.Or(region_a(u, d), region_b(u, d)), under=[u >= 0, u < 1])


@in_general
def test_the_regions_in_terms_of_the_current() -> None:
    """``d < 1`` is ``I < L*theta``, ``d >= 0`` is ``I >= 0``."""
    prove(z3.And((d < 1) == (i < L), (d >= 0) == (i >= 0)), under=[L >= 1, L * d == i])


@pytest.mark.statement(LEMMA, precondition=PAPER, how="cross-check: unrolled for every L <= 16, all reals (z3)")
@pytest.mark.parametrize("levels", range(1, 17))
def test_unrolled(levels: int) -> None:
    """L given, the IF neuron written out step by step, no invariant: the two ways must agree, so the encoding is right."""
    spikes, potentials = unrolled([d] * levels, 1, u)
    m = u + levels * d
    s = thresholds_reached(m, levels)
    prove(s == mht_count(m, levels))
    prove(z3.And(z3.Sum(spikes) == s, potentials[-1] == m - s), under=[z3.Or(region_a(u, d), region_b(u, d))])
    refute(z3.Sum(spikes) == thresholds_reached(m - z3.Q(1, 4), levels), under=[u >= 0, u < 1])


@pytest.mark.statement(LEMMA, precondition="none, for L = 1", how="proved for all reals (z3)")
def test_one_level_needs_no_precondition() -> None:
    prove(if_count(u + d) == mht_count(u + d, 1))


@pytest.mark.statement(
    LEMMA,
    precondition="v(t-1) in [0, theta], necessary and sufficient for L > 1",
    how="proved for all L and all reals (z3)",
)
class TestExactlyTheClosedInterval:
    """For L > 1 the lemma holds for every I if and only if 0 <= v(t-1) <= theta."""

    def test_theta_itself_is_allowed(self) -> None:
        """At u = 1 a current d >= 0 is in region B; with d < 0 the first step does not fire, and A follows."""
        prove(z3.Or(region_b(u, d), z3.And(if_count(u + d) == 0, region_a(u + d, d))), under=[u == 1])

    def test_theta_itself_with_a_negative_current_is_silent_in_both(self) -> None:
        """From there region A's invariant has c = 0, and M-HT emits nothing either."""
        prove(mht_count(u + i, L) == 0, under=[u == 1, L >= 1, i < 0])

    def test_below_0_some_current_separates_them(self) -> None:
        """d = 1 - u/L: the first IF step stays silent, so at most L - 1 fire, but u + I = L."""
        silent, all_levels = if_count(u + d) == 0, mht_count(u + i, L) == L
        prove(z3.And(silent, all_levels), under=[L > 1, u < 0, L * d == i, L - u == i])

    def test_above_theta_some_current_separates_them(self) -> None:
        """d = 1 - u: the first IF step fires, but u + I < 1."""
        prove(z3.And(if_count(u + d) == 1, mht_count(u + i, L) == 0), under=[L > 1, u > 1, L * d == i, d == 1 - u])


@pytest.mark.statement(LEMMA, precondition=PAPER, how="necessity: z3 finds a counterexample, replayed in floats")
@pytest.mark.parametrize("levels", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("dropped", "outside"), [("v(t-1) >= 0", u < 0), ("v(t-1) < theta", u >= 1)], ids=["below-0", "above-theta"]
)
def test_without_its_precondition(
    levels: int, dropped: str, outside: z3.BoolRef, counterexample: Callable[[str], None]
) -> None:
    spikes, _ = unrolled([d] * levels, 1, u)
    claim = z3.Sum(spikes) == thresholds_reached(u + levels * d, levels)
    v0, current = smallest_counterexample(claim, [u, d], under=[outside])
    report = counterexample if levels == 2 else print
    show(eager, report, f"{dropped} dropped", levels=levels, v0=v0, currents=[levels * current])
