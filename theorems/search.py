"""The smallest counterexample, by enumeration in order of size: no randomness, so a report can quote it."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product

from theorems.oracle import Q
from theorems.strategies import NO_LEAK, Case, Grid

HALVES = [Q(n, 2) for n in range(-4, 9)]  # -2 .. 4
QUARTERS = [Q(n, 4) for n in range(-8, 17)]


def candidates(
    leaks: Sequence[Fraction], starts: Sequence[Fraction] | None, uniform: bool, most: int
) -> Iterator[Case]:
    """One neuron, theta = 1: by L*T, then T, then the size of the numbers; halves before quarters."""
    for size in range(1, most + 1):
        for T in (T for T in range(1, size + 1) if size % T == 0):
            for numbers in (HALVES, QUARTERS):
                trains = [(n,) * T for n in numbers] if uniform else list(product(numbers, repeat=T))
                v0s = [v for v in numbers if -2 <= v <= 2] if starts is None else starts
                found = product(v0s, trains, leaks)
                for v0, train, leak in sorted(
                    found, key=lambda c: (abs(c[0]) + sum(map(abs, c[1])) + abs(c[2] - 1), c[0] < 0, c)
                ):
                    currents: Grid = tuple((current,) for current in train)
                    yield Case(size // T, Q(1), leak, (v0,), currents, (1,))


def smallest(
    fails: Callable[[Case], bool],
    *,
    leaks: Sequence[Fraction] = NO_LEAK,
    v0: Sequence[Fraction] | None = (Q(0),),
    uniform: bool = False,
    most: int = 6,
) -> Case:
    """The first case that fails; v0 None searches it too.

    Raises:
        LookupError: none does, with L*T up to ``most``.
    """
    for case in candidates(leaks, v0, uniform, most):
        if fails(case):
            return case
    raise LookupError(f"no counterexample with L*T <= {most}")


def describe(case: Case, outcome: str) -> str:
    """A line for the report; theta is 1."""
    train = ", ".join(map(str, case.train(0)))
    leak = "" if case.leak == 1 else f", lambda = {case.leak}"
    return f"L = {case.levels}, T = {case.steps}{leak}, theta = 1, v(0) = {case.v0[0]}, I = ({train}): {outcome}"
