"""Theorem A.2, proved: cutting Omega and b into L parts makes the IF currents of window t sum to I(t), and what follows from it.

``b_hat = b/L``; ``omega_hat = omega/L`` on each L x L block of an LT x LT matrix; leak lambda between windows, 1 inside one.
The hypothesis on the layer before, that its spikes of window j sum to ``s(j)``, is what Lemma 4.1 delivers at the layer itself:
inside region A or B, with ``u = lambda*v(t-1)``. So equality passes from layer to layer, and stops at a window outside both.
Proved for all L, all T, all reals; sums over a block and over T by induction, ``p`` the sum so far.
"""

from collections.abc import Callable
from fractions import Fraction

import pytest

from theorems.impl import eager
from theorems.proofs.equations import SIZES, mht_count, region_a, region_b, thresholds_reached, unrolled
from theorems.proofs.replay import show
from theorems.proofs.solver import prove, refute, smallest_counterexample, z3

THEOREM = "Theorem A.2"
WINDOW_SUM = "window sum: the layer before has equal spike sums in every window"
WINDOW = "equal spikes in a window: u = lambda*v(t-1) with A: u < theta and I < L*theta, or B: u >= 0 and I >= 0"
GENERAL = "proved for all L, all T, all reals (z3, induction over the sums)"

L, n = z3.Ints("L n")
w, b, omega, spike, spikes, p, x, current, i = z3.Reals("w b omega spike spikes p x current I")
u, v, d, leak = z3.Reals("u v d leak")


@pytest.mark.statement(THEOREM, precondition=WINDOW_SUM, how=GENERAL)
class TestWindowSum:
    """``w`` is the weight times theta of the layer before; more than one presynaptic neuron adds more terms of the same form."""

    def test_input_of_a_window_so_far(self) -> None:
        """n steps into window j the inputs ``w*s_hat + b/L`` sum to ``w*(spikes so far) + n*b/L``."""
        prove(
            L * (p + w * spike + b / L) == L * w * (spikes + spike) + (n + 1) * b,
            under=[L >= 1, n >= 0, L * p == L * w * spikes + n * b],
        )

    def test_input_of_a_whole_window(self) -> None:
        """At n = L, with equal spike sums, that is the original input ``x(j) = w*s(j) + b``."""
        prove(p == w * spikes + b, under=[L >= 1, n == L, L * p == L * w * spikes + n * b])

    def test_row_of_a_block(self) -> None:
        """Mixed with the block's constant ``omega/L``, the sum so far is ``omega/L`` times the input so far."""
        prove(p + omega / L * x == omega / L * (current + x), under=[L >= 1, p == omega / L * current])

    def test_row_over_the_windows(self) -> None:
        """Over windows: L times the current of one IF step is ``sum_j omega_tj * x(j) = I(t)``."""
        prove(L * (p + omega / L * x) == current + omega * x, under=[L >= 1, L * p == current])

    def test_column_of_a_window(self) -> None:
        """All L rows of a block are the same, so every step of the window gets I(t)/L, n of them ``n*I(t)/L``."""
        prove(L * (p + i / L) == (n + 1) * i, under=[L >= 1, n >= 0, L * p == n * i])

    def test_conclusion(self) -> None:
        prove(p == i, under=[L >= 1, n == L, L * p == n * i])

    def test_planted_falsehoods_are_refuted(self) -> None:
        """An uncut bias, or an uncut Omega."""
        refute(
            L * (p + w * spike + b) == L * w * (spikes + spike) + (n + 1) * b,
            under=[L >= 1, n >= 0, L * p == L * w * spikes + n * b],
        )
        refute(L * (p + omega * x) == current + omega * x, under=[L >= 1, L * p == current])


@pytest.mark.statement(
    THEOREM, precondition=WINDOW_SUM, how="cross-check: unrolled for every L*T <= 16, all reals (z3)"
)
@pytest.mark.parametrize(("levels", "steps"), SIZES)
def test_window_sum_unrolled(levels: int, steps: int) -> None:
    """The LT x LT matrix itself, block by block, for any real spike trains and biases; every row of the result."""
    omegas = [[z3.Real(f"omega_{t}_{j}") for j in range(steps)] for t in range(steps)]
    trains = [[z3.Real(f"s_{j}_{k}") for k in range(levels)] for j in range(steps)]
    cut = [[w * s + b / levels for s in train] for train in trains]
    for t in range(steps):
        row = z3.Sum([omegas[t][j] / levels * x for j in range(steps) for x in cut[j]])
        original = z3.Sum([omegas[t][j] * (w * z3.Sum(trains[j]) + b) for j in range(steps)])
        prove(z3.Sum([row] * levels) == original)
    uncut = z3.Sum([omegas[0][j] / levels * (w * s + b) for j in range(steps) for s in trains[j]])
    if levels > 1:
        refute(z3.Sum([uncut] * levels) == z3.Sum([omegas[0][j] * (w * z3.Sum(trains[j]) + b) for j in range(steps)]))


@pytest.mark.statement(
    THEOREM, precondition=WINDOW, how="proved for all L, all T, all reals and all leaks (z3, with Lemma 4.1)"
)
class TestLocalWindowCondition:
    """Lemma 4.1 is proved in regions A and B of u, wherever u comes from; here: where u comes from when there is a leak."""

    def test_learned_leak_and_currents_in_range(self) -> None:
        """I(t) in [0, L*theta): every window is in A or in B, whatever the leak and v(t-1) are."""
        prove(z3.Or(region_a(leak * v, d), region_b(leak * v, d)), under=[d >= 0, d < 1])

    def test_leak_at_most_1_keeps_region_a(self) -> None:
        m = leak * v + i
        prove(leak * (m - mht_count(m, L)) < 1, under=[L >= 1, leak * v < 1, i < L, leak >= 0, leak <= 1])

    def test_any_leak_keeps_region_b(self) -> None:
        m = leak * v + i
        prove(leak * (m - mht_count(m, L)) >= 0, under=[L >= 1, leak * v >= 0, i >= 0, leak >= 0])

    def test_planted_falsehood_is_refuted(self) -> None:
        """A learned leak may be as large as 3/2: region A does not survive that."""
        m = leak * v + i
        refute(leak * (m - mht_count(m, L)) < 1, under=[L >= 1, leak * v < 1, i < L, leak > 1, 2 * leak < 3])


@pytest.mark.statement(THEOREM, precondition=WINDOW, how="cross-check: unrolled for every L <= 16, all reals (z3)")
@pytest.mark.parametrize("levels", range(1, 17))
def test_local_window_condition_unrolled(levels: int) -> None:
    """Leak before the window's first step and 1 inside: equal for every u. A leak inside the window too: not equal."""

    def window(inner: z3.ArithRef) -> tuple[z3.ArithRef, z3.ArithRef]:
        total, now = z3.RealVal(0), u
        for step in range(levels):
            (s,), (now,) = unrolled([d], 1, inner * now if step else now)
            total = total + s
        return total, now

    m = u + levels * d
    count, inside = thresholds_reached(m, levels), z3.Or(region_a(u, d), region_b(u, d))
    total, end = window(z3.RealVal(1))
    prove(z3.And(total == count, end == m - count), under=[inside])
    if levels > 1:
        total, _ = window(z3.Q(1, 2))
        refute(total == count, under=[inside])


@pytest.mark.statement(THEOREM, precondition=WINDOW, how="necessity: z3 finds a counterexample, replayed in floats")
@pytest.mark.parametrize("levels", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("dropped", "outside"),
    [
        ("negative potential, saturating current", (u < 0, d >= 1)),
        ("potential from theta up, negative current", (u >= 1, d < 0)),
    ],
    ids=["saturating", "negative"],
)
def test_outside_both_regions(
    levels: int,
    dropped: str,
    outside: tuple[z3.BoolRef, z3.BoolRef],
    counterexample: Callable[[str], None],
) -> None:
    """The two corners that A and B leave out, each with a learned leak: ``lambda = 5/4``."""
    factor = Fraction(5, 4)
    spikes_if, _ = unrolled([d] * levels, 1, u)
    claim = z3.Sum(spikes_if) == thresholds_reached(u + levels * d, levels)
    v0, part = smallest_counterexample(claim, [v, d], under=[4 * u == 5 * v, *outside])
    report = counterexample if levels == 2 else print
    show(eager, report, dropped, levels=levels, v0=v0, currents=[levels * part], leak=factor)


@pytest.mark.statement(
    THEOREM, precondition=WINDOW, how="proved for all L > 1 (z3): each corner holds a counterexample"
)
class TestBothCornersFailForEveryL:
    def test_negative_potential_and_saturating_current(self) -> None:
        """u = -theta/2, I = 5/4*L*theta: the first IF step is silent, M-HT emits L."""
        m = z3.Q(-1, 2) + L * z3.Q(5, 4)
        prove(z3.And(z3.Q(-1, 2) + z3.Q(5, 4) < 1, mht_count(m, L) == L), under=[L > 1])

    def test_potential_above_theta_and_negative_current(self) -> None:
        """u = 3/2*theta, I = -L*theta/2: the first IF step fires, M-HT emits nothing."""
        m = z3.Q(3, 2) - L * z3.Q(1, 2)
        prove(z3.And(z3.Q(3, 2) - z3.Q(1, 2) >= 1, mht_count(m, L) == 0), under=[L > 1])
