"""prove, refute, and the smallest counterexample: the three questions the proofs ask z3. ``unknown`` is never an answer."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from textwrap import shorten
from typing import Any

import pytest

z3 = pytest.importorskip("z3", reason="the proofs need the z3 solver: pip install 'lmht[proofs]'")

Term = Any  # a z3 expression or a plain number: z3 ships no types
TIMEOUT_MS = 300_000  # wall time, generous: a busy machine must not turn a proof into "unknown"


def prove(claim: Term, *, under: Sequence[Term] = ()) -> None:
    """Fail unless ``claim`` holds wherever ``under`` does, and ``under`` holds somewhere (else anything would follow)."""
    assert _ask(*under).check() == z3.sat, f"sanity: the hypotheses contradict each other: {list(under)}"
    question = _ask(*under, z3.Not(claim))
    answer = question.check()
    where = f"\nfalse at {question.model()}" if answer == z3.sat else ""
    assert answer == z3.unsat, f"not proved ({answer}): {shorten(str(claim), 400)}{where}"


def refute(claim: Term, *, under: Sequence[Term] = ()) -> None:
    """Fail unless ``claim`` is false somewhere inside ``under``: an encoding that proves a planted falsehood proves nothing."""
    answer = _ask(*under, z3.Not(claim)).check()
    assert answer == z3.sat, f"not refuted ({answer}): {shorten(str(claim), 400)}"


def smallest_counterexample(claim: Term, over: Sequence[Term], *, under: Sequence[Term] = ()) -> list[Fraction]:
    """Values of ``over`` at which ``claim`` fails inside ``under``, dyadic, so that floats hold them exactly.

    The smallest denominator first, then the smallest bound on all absolute values: what a reader should look at first.
    """
    for denominator, bound in product((1, 2, 4, 8, 16, 32), range(1, 9)):
        grid = [z3.Int(f"grid_{i}") for i in range(len(over))]
        dyadic = [x * denominator == z3.ToReal(n) for x, n in zip(over, grid, strict=True)]
        bounded = [z3.And(-bound * denominator <= n, n <= bound * denominator) for n in grid]
        question = _ask(*under, *dyadic, *bounded, z3.Not(claim))
        answer = question.check()
        assert answer != z3.unknown, f"the solver gave up: {question.reason_unknown()}"
        if answer == z3.sat:
            return [Fraction(question.model().eval(n, True).as_long(), denominator) for n in grid]
    raise AssertionError(f"no dyadic counterexample to {shorten(str(claim), 400)}")


def _ask(*assertions: Term) -> Term:
    solver = z3.Solver()
    solver.set(timeout=TIMEOUT_MS, random_seed=0)
    solver.add(*assertions)
    return solver
