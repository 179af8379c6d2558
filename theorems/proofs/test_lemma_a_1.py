"""Lemma A.1, proved: the potential of an M-HT neuron stays in [0, theta). By induction over steps, so one step is enough.

Each half has a weaker precondition of its own, and survives a leak; nothing of the paper's precondition can be dropped.
"""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from theorems.impl import eager
from theorems.proofs.equations import SIZES, if_count, mht_count, unrolled
from theorems.proofs.solver import prove, refute, smallest_counterexample, z3

LEMMA = "Lemma A.1"
PAPER = "lambda = 1, v(0) in [0, theta), all I(t) in [0, L*theta)"

L = z3.Int("L")
v, i, leak, d = z3.Reals("v I leak d")


def after(current: z3.ArithRef, levels: z3.ArithRef) -> z3.ArithRef:
    """Potential after one M-HT step from v."""
    return leak * v + current - mht_count(leak * v + current, levels)


@pytest.mark.statement(LEMMA, precondition=PAPER, how="proved for all L, all T, all reals (z3, induction over steps)")
class TestStep:
    def test_the_potential_stays(self) -> None:
        now = after(i, L)
        prove(z3.And(now >= 0, now < 1), under=[leak == 1, L >= 1, v >= 0, v < 1, i >= 0, i < L])

    def test_so_does_the_if_neurons(self) -> None:
        now = v + d - if_count(v + d)
        prove(z3.And(now >= 0, now < 1), under=[v >= 0, v < 1, d >= 0, d < 1])

    def test_planted_falsehood_is_refuted(self) -> None:
        """One level fewer does not keep it below theta."""
        refute(after(i, L - 1) < 1, under=[leak == 1, L >= 2, v >= 0, v < 1, i >= 0, i < L])


@pytest.mark.statement(LEMMA, precondition=PAPER, how="cross-check: unrolled for every L*T <= 16, all reals (z3)")
@pytest.mark.parametrize(("levels", "steps"), SIZES)
def test_unrolled(levels: int, steps: int) -> None:
    v0, currents = z3.Real("v0"), z3.Reals([f"I{t}" for t in range(steps)])
    _, potentials = unrolled(currents, levels, v0)
    paper = [v0 >= 0, v0 < 1, *(z3.And(i >= 0, i < levels) for i in currents)]
    prove(z3.And([z3.And(p >= 0, p < 1) for p in potentials]), under=paper)
    refute(potentials[-1] < z3.Q(1, 2), under=paper)


@pytest.mark.statement(
    LEMMA,
    precondition="v < theta: v(0) < theta, all I(t) < L*theta, 0 <= lambda <= 1; v >= 0: v(0) >= 0, all I(t) >= 0, lambda >= 0",
    how="proved for all L, all T, all reals (z3, induction over steps), each half weaker than the paper's",
)
class TestHalves:
    def test_below_threshold(self) -> None:
        prove(after(i, L) < 1, under=[L >= 1, v < 1, i < L, leak >= 0, leak <= 1])

    def test_not_negative(self) -> None:
        prove(after(i, L) >= 0, under=[L >= 1, v >= 0, i >= 0, leak >= 0])


CONDITIONS = {
    "v(0) >= 0": v >= 0,
    "v(0) < theta": v < 1,
    "I >= 0": i >= 0,
    "I < L*theta": i < L,
    "lambda >= 0": leak >= 0,
    "lambda <= 1": leak <= 1,
}


@pytest.mark.statement(LEMMA, precondition=PAPER, how="necessity: z3 finds a counterexample, replayed in floats")
@pytest.mark.parametrize("dropped", CONDITIONS)
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_without_one_condition(dropped: str, levels: int, counterexample: Callable[[str], None]) -> None:
    kept = [condition for name, condition in CONDITIONS.items() if name != dropped]
    if not dropped.startswith("lambda"):
        kept.append(leak == 1)
    now = after(i, L)
    found = smallest_counterexample(z3.And(now >= 0, now < 1), [v, i, leak], under=[*kept, levels == L])
    v0, current, lam = found
    _, potentials = eager.mht(
        torch.tensor([[float(current)]], dtype=torch.float64), levels=levels, theta=1.0, leak=float(lam), v0=float(v0)
    )
    got = Fraction(float(potentials[0, 0]))
    m = lam * v0 + current
    assert got == m - min(max(m.__floor__(), 0), levels)
    assert not 0 <= got < 1
    text = f"{dropped} dropped: L = {levels}, theta = 1, lambda = {lam}, v(0) = {v0}, I = {current}: v(1) = {got}"
    (counterexample if levels == 2 else print)(text)
