"""Theorem 4.4: the expected difference between an LM-HT neuron and the Tq-level QCFS activation is 0: for a uniform current.

``omega = 1/T``, ``lambda = 1``, ``theta = vartheta``, ``v(0) = theta/2``; QCFS sees x, the neuron L*x at every step. Both sides
are piecewise constant in x, with breakpoints at ``(k - 1/2)*theta/n``, so an expectation is a finite sum over the cells.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import pairwise
from math import log, sqrt
from typing import Any

import pytest
import torch

from theorems import oracle
from theorems.check import Call
from theorems.impl import Loaded
from theorems.oracle import ONE, Q

THEOREM = "Theorem 4.4"
UNIFORM = "x uniform on [0, theta]; any L, T, Tq"
LEVELS = range(1, 17)
SIZES = [(L, T) for L in LEVELS for T in LEVELS]
Primitive = Callable[[Fraction], Fraction]  # of the density: P(x <= .), theta = 1


def uniform(x: Fraction) -> Fraction:
    return x


def rising(x: Fraction) -> Fraction:
    """Density 2x."""
    return x * x


@cache
def cells(n: int) -> list[tuple[Fraction, Fraction]]:
    edges = [Q(0), *(Q(2 * k - 1, 2 * n) for k in range(1, n + 1)), ONE]
    return list(pairwise(edges))


@cache
def neuron_counts(L: int, T: int) -> list[int]:
    """Spikes of the equations' neuron in each cell of L*T levels, at the cell's left edge (a tie) and its middle: equal.

    In units of theta / (4*T) all of it is integers, a tenth of the time.
    """
    counts, one = [], 4 * T
    mht: Any = oracle.mht  # takes any rationals, integers too
    for low, high in cells(L * T):
        currents = [int(L * x * one) for x in (low, (low + high) / 2)]
        at = [sum(mht([current] * T, levels=L, theta=one, leak=1, v0=one // 2).s) for current in currents]
        assert at[0] == at[1], f"L = {L}, T = {T}: not constant on [{low}, {high})"
        counts.append(at[0])
    return counts


def expectation(counts: list[int], primitive: Primitive) -> Fraction:
    """E[count/n] for a function that is ``counts[i]/n`` on the i-th of the n + 1 cells."""
    n = len(counts) - 1
    return (
        sum((count * (primitive(b) - primitive(a)) for count, (a, b) in zip(counts, cells(n), strict=True)), Q(0)) / n
    )


def qcfs_counts(n: int) -> list[int]:
    return [int(n * oracle.qcfs((low + high) / 2, levels=n, scale=ONE)) for low, high in cells(n)]


@pytest.mark.statement(THEOREM, precondition=UNIFORM, how="exact integration of the equations, all L, T, Tq <= 16")
def test_expected_difference_is_zero() -> None:
    quantised = {Tq: expectation(qcfs_counts(Tq), uniform) for Tq in LEVELS}
    assert set(quantised.values()) == {Q(1, 2)}
    for L, T in SIZES:
        assert expectation(neuron_counts(L, T), uniform) - Q(1, 2) == 0, f"L = {L}, T = {T}"


@pytest.mark.statement(THEOREM, precondition=UNIFORM, how="exact integration of the implementation, all L, T, Tq <= 16")
def test_expected_difference_of_the_implementation(impl: Loaded) -> None:
    """Its outputs in the middle of every cell are those of the equations, hence so is the integral. theta = 1/2."""
    for L, T in SIZES:
        middles = [float(L * (low + high) / 2) / 2 for low, high in cells(L * T)]
        call = neuron(impl, torch.tensor(middles, dtype=torch.float64).expand(T, -1), L, theta=0.5)
        counts = [round(count) for count in (call.result.sum(0) / 0.5).tolist()]
        expected = neuron_counts(L, T)
        assert counts == expected, (
            f"L = {L}, T = {T}: spikes {counts} over the cells of x, not {expected}\n{call.source}"
        )
        assert expectation(counts, uniform) == Q(1, 2)
    for Tq in LEVELS:
        middles = [float((low + high) / 2) for low, high in cells(Tq)]
        call = Call(
            impl, "qcfs", torch.tensor(middles, dtype=torch.float64), levels=Tq, scale=torch.tensor(1.0).double()
        )
        assert [round(Tq * value) for value in call.result.tolist()] == qcfs_counts(Tq), f"Tq = {Tq}\n{call.source}"


def neuron(impl: Loaded, current: torch.Tensor, L: int, theta: float) -> Call:
    T = len(current)
    omega = torch.full((T, T), 1 / T, dtype=current.dtype)
    leak = torch.tensor(1.0, dtype=current.dtype)
    return Call(impl, "lmht", current, levels=L, theta=theta, omega=omega, leak=leak, v0=theta / 2)


@pytest.mark.statement(
    THEOREM,
    precondition="another distribution of x",
    how="exact integration, density 2x on [0, 1]",
    verdict="false",
)
def test_other_density(counterexample: Callable[[str], None]) -> None:
    """The statement needs its distribution: under density 2x the means depend on the number of levels."""
    means = {n: expectation(qcfs_counts(n), rising) for n in (1, 2, 4, 8)}
    assert means == {1: Q(3, 4), 2: Q(11, 16), 4: Q(43, 64), 8: Q(171, 256)}
    for L, T in SIZES:  # 2/3 + 1/(12*n^2): no two numbers of levels agree
        assert expectation(neuron_counts(L, T), rising) == Q(2, 3) + Q(1, 12 * (L * T) ** 2)
    counterexample(f"density 2x: the mean is {means[1]} at 1 level (L*T = 1) and {means[2]} at 2 (Tq = 2)")


def integrated_square(m: int, n: int) -> Fraction:
    """E[(q_m - q_n)^2], cell by cell."""
    edges = sorted({edge for count in (m, n) for cell in cells(count) for edge in cell})
    return sum(
        (
            (b - a)
            * (oracle.qcfs((a + b) / 2, levels=m, scale=ONE) - oracle.qcfs((a + b) / 2, levels=n, scale=ONE)) ** 2
            for a, b in pairwise(edges)
        ),
        Q(0),
    )


@pytest.mark.statement(
    THEOREM,
    precondition="mean-square difference, x uniform: 1/(12m^2) + 1/(12n^2) - c*g^2/(m*n)^2, g = gcd(m, n), "
    "c = 1/6 if m/g and n/g are odd, else -1/12",
    how="closed form = exact integration, all m, n <= 16 and m = 32, 64",
    verdict="0 only for m = n",
)
def test_mean_square_difference(counterexample: Callable[[str], None]) -> None:
    for m in (*LEVELS, 32, 64):
        for n in LEVELS:
            closed = oracle.mean_square_difference(m, n)
            assert closed == integrated_square(m, n), (m, n)
            assert (closed == 0) == (m == n)
    known = {(2, 4): Q(1, 32), (2, 8): Q(3, 128), (4, 8): Q(1, 128)}
    assert {pair: oracle.mean_square_difference(*pair) for pair in known} == known
    counterexample(f"equal means are not equal outputs: 2 against 4 levels differ by {known[2, 4]} in mean square")


SAMPLES, ERROR_PROBABILITY = 2**16, 1e-9


@pytest.mark.statement(
    THEOREM,
    precondition=UNIFORM,
    how=f"Monte Carlo, {SAMPLES} samples, mean and mean square: error probability {ERROR_PROBABILITY} (Hoeffding)",
)
@pytest.mark.parametrize(("L", "T", "Tq"), [(1, 2, 4), (2, 2, 8), (2, 3, 4), (4, 2, 8), (3, 1, 2)])
def test_monte_carlo(impl: Loaded, L: int, T: int, Tq: int) -> None:
    x = torch.rand(SAMPLES, dtype=torch.float64, generator=torch.Generator().manual_seed(L + 10 * T + 100 * Tq))
    out = neuron(impl, (L * x).expand(T, -1), L, theta=1.0).result.sum(0) / (L * T)
    difference = out - impl.qcfs(x, levels=Tq, scale=torch.tensor(1.0, dtype=torch.float64))
    # |difference| <= r, as each side is within half a level of x; Hoeffding: P(|mean - E| > t) <= 2*exp(-2*n*t^2/width^2)
    r = (1 / (L * T) + 1 / Tq) / 2
    slack = sqrt(log(2 / ERROR_PROBABILITY) / (2 * SAMPLES))
    assert abs(float(difference.mean())) <= 2 * r * slack
    expected = float(oracle.mean_square_difference(L * T, Tq))
    assert abs(float((difference**2).mean()) - expected) <= r**2 * slack
