"""Theorem 4.2 (i), proved: window by window, an M-HT neuron and the IF neuron with I(t)/L emit the same and end at the same v.

One window is Lemma 4.1 (``test_lemma_4_1.py``: inside region A or B). What is left is that windows chain. Proved for all L, all
T, all reals and all leaks by induction over windows: the regions survive a step, so "all I(t) < L*theta" or "all I(t) >= 0"
is enough; and with all I(t) in [0, L*theta) neither v(0) nor the leak matters, because every potential is in A or in B.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest

from theorems.impl import eager
from theorems.proofs.equations import SIZES, mht_count, region_a, region_b, unrolled
from theorems.proofs.replay import show
from theorems.proofs.solver import Term, prove, refute, smallest_counterexample, z3

THEOREM = "Theorem 4.2 (i)"
PAPER = "lambda = 1, v(0) in [0, theta), all I(t) in [0, L*theta)"
INDUCTION = "proved for all L, all T, all reals (z3, induction over windows)"

L = z3.Int("L")
v, i, leak, d = z3.Reals("v I leak d")


@pytest.mark.statement(THEOREM, precondition=PAPER, how=INDUCTION)
def test_next_window_starts_where_the_paper_asks() -> None:
    """Lemma A.1's step: the precondition of Lemma 4.1 holds again."""
    now = v + i - mht_count(v + i, L)
    prove(z3.And(now >= 0, now < 1), under=[L >= 1, v >= 0, v < 1, i >= 0, i < L])


@pytest.mark.statement(
    THEOREM,
    precondition="all I(t) in [0, L*theta); any v(0), any lambda",
    how=INDUCTION + ", weaker than the paper's",
)
def test_every_potential_is_in_a_region_if_the_current_is_in_range() -> None:
    prove(z3.Or(region_a(leak * v, d), region_b(leak * v, d)), under=[d >= 0, d < 1])


@pytest.mark.statement(
    THEOREM,
    precondition="v(0) < theta, all I(t) < L*theta, 0 <= lambda <= 1",
    how=INDUCTION + ", weaker than the paper's",
)
class TestRegionAChains:
    def test_first_window(self) -> None:
        prove(leak * v < 1, under=[v < 1, leak >= 0, leak <= 1])

    def test_next_window(self) -> None:
        m = leak * v + i
        prove(leak * (m - mht_count(m, L)) < 1, under=[L >= 1, leak * v < 1, i < L, leak >= 0, leak <= 1])

    def test_planted_falsehood_is_refuted(self) -> None:
        """It does not chain for lambda > 1."""
        refute(leak * v < 1, under=[v < 1, leak >= 0])


@pytest.mark.statement(
    THEOREM, precondition="v(0) >= 0, all I(t) >= 0, lambda >= 0", how=INDUCTION + ", weaker than the paper's"
)
class TestRegionBChains:
    def test_first_window(self) -> None:
        prove(leak * v >= 0, under=[v >= 0, leak >= 0])

    def test_next_window(self) -> None:
        m = leak * v + i
        prove(leak * (m - mht_count(m, L)) >= 0, under=[L >= 1, leak * v >= 0, i >= 0, leak >= 0])

    def test_planted_falsehood_is_refuted(self) -> None:
        """A negative current leaves region B."""
        refute(v + i - mht_count(v + i, L) >= 0, under=[L >= 1, v >= 0])


def statement(levels: int, v0: Term, parts: Sequence[Term]) -> Term:
    """All windows agree, in spikes and in the potential at the end; ``parts`` are the currents of one IF step, I(t)/L."""
    mht, v_mht = unrolled([levels * part for part in parts], levels, v0)
    single, v_if = unrolled([part for part in parts for _ in range(levels)], 1, v0)
    ends = range(levels, levels * len(parts) + 1, levels)
    windows = [z3.Sum(single[end - levels : end]) for end in ends]
    return z3.And(*(s == w for s, w in zip(mht, windows, strict=True)),
                  *(p == v_if[end - 1] for p, end in zip(v_mht, ends, strict=True)))  # fmt: skip


@pytest.mark.statement(THEOREM, precondition=PAPER, how="cross-check: unrolled for every L*T <= 16, all reals (z3)")
@pytest.mark.parametrize(("levels", "steps"), SIZES)
def test_unrolled(levels: int, steps: int) -> None:
    """Everything written out, no invariant and no induction: under the paper's precondition, under A and under B."""
    v0, parts = z3.Real("v0"), z3.Reals([f"d{t}" for t in range(steps)])
    claim = statement(levels, v0, parts)
    prove(claim, under=[v0 >= 0, v0 < 1, *(z3.And(part >= 0, part < 1) for part in parts)])
    prove(claim, under=[v0 < 1, *(part < 1 for part in parts)])
    prove(claim, under=[v0 >= 0, *(part >= 0 for part in parts)])
    if levels == 1:
        prove(claim)
    else:
        refute(claim)


V0, D1, D2 = z3.Reals("v0 d1 d2")


@pytest.mark.statement(THEOREM, precondition=PAPER, how="necessity: z3 finds a counterexample, replayed in floats")
@pytest.mark.parametrize("levels", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("dropped", "kept"),
    [
        ("the range of I", [V0 >= 0, V0 < 1]),
        ("I >= 0 and v(0) < theta", [V0 >= 0, D1 < 1, D2 < 1]),
        ("I < L*theta and v(0) >= 0", [V0 < 1, D1 >= 0, D2 >= 0]),
    ],
    ids=["range", "below", "above"],
)
def test_without_a_region(
    levels: int, dropped: str, kept: list[z3.BoolRef], counterexample: Callable[[str], None]
) -> None:
    """One condition may go, as proved above; when a potential and a current leave A and B together, the theorem fails."""
    v0, *parts = smallest_counterexample(statement(levels, V0, [D1, D2]), [V0, D1, D2], under=kept)
    report = counterexample if levels == 2 else print
    show(eager, report, f"{dropped} dropped", levels=levels, v0=v0, currents=[levels * part for part in parts])


@pytest.mark.statement(THEOREM, precondition=PAPER, how="necessity: z3 finds a counterexample, replayed in floats")
@pytest.mark.parametrize("levels", [2, 3, 4, 8])
def test_without_lambda_1_and_without_i_not_negative(levels: int, counterexample: Callable[[str], None]) -> None:
    """lambda > 1 carries a potential below theta above it, and a negative current then separates the neurons."""
    leak = Fraction(5, 4)  # inside the learned leak's (1/2, 3/2)
    u = z3.Q(leak.numerator, leak.denominator) * V0
    v0, part = smallest_counterexample(statement(levels, u, [D1]), [V0, D1], under=[V0 >= 0, V0 < 1, D1 < 1])
    report = counterexample if levels == 2 else print
    show(eager, report, "lambda = 1 and I >= 0 dropped", levels=levels, v0=v0, currents=[levels * part], leak=leak)
