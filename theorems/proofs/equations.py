"""The equations the proofs are about, at ``theta = 1``, and the two regions and invariants they turn on.

``theta = 1`` is no loss of generality: dividing every potential by ``theta`` changes no spike (one query, in
``test_lemma_4_1.py``). The window of an M-HT step is L steps of an IF neuron with the current ``d = I/L`` each; it starts from
the potential ``u = lambda * v(t-1)``, and after j of the L steps the IF neuron has the potential v and c spikes behind it.
"""

from collections.abc import Sequence
from itertools import product

from theorems.proofs.solver import Term, z3

SIZES = [(levels, steps) for levels, steps in product(range(1, 17), repeat=2) if levels * steps <= 16]


def mht_count(m: Term, levels: Term) -> Term:
    """Spikes of one M-HT step, ``clip(floor(m), 0, L)`` (Eq. 5), L symbolic."""
    floor = z3.ToInt(m)
    return z3.If(floor < 0, 0, z3.If(floor > levels, levels, floor))


def thresholds_reached(m: Term, levels: int) -> Term:
    """The same for a given L, without a floor: how many of the thresholds 1..L does m reach?"""
    return z3.Sum([z3.If(m >= k, z3.RealVal(1), z3.RealVal(0)) for k in range(1, levels + 1)])


def if_count(m: Term) -> Term:
    """Spikes of one IF step (Eq. 1): a tie fires."""
    return z3.If(m >= 1, 1, 0)


def unrolled(currents: Sequence[Term], levels: int, v0: Term) -> tuple[list[Term], list[Term]]:
    """Spikes and potentials of an M-HT neuron without leak over all steps; IF is ``levels = 1``."""
    spikes, potentials, v = [], [], v0
    for current in currents:
        s = thresholds_reached(v + current, levels)
        v = v + current - s
        spikes.append(s)
        potentials.append(v)
    return spikes, potentials


def region_a(u: Term, d: Term) -> Term:
    """Neither saturated nor above threshold at the start: ``u < theta`` and ``I < L*theta``."""
    return z3.And(u < 1, d < 1)


def region_b(u: Term, d: Term) -> Term:
    """Nothing negative: ``u >= 0`` and ``I >= 0``."""
    return z3.And(u >= 0, d >= 0)


def invariant_a(d: Term, j: Term, v: Term, c: Term) -> Term:
    """In region A after j steps: below threshold, and a neuron that has fired has a current and a potential >= 0."""
    return z3.And(v < 1, c >= 0, c <= j, z3.Or(c == 0, z3.And(d >= 0, v >= 0)))


def invariant_b(d: Term, j: Term, v: Term, c: Term) -> Term:
    """In region B after j steps: not negative, and either every step fired or the neuron has come below threshold for good."""
    return z3.And(v >= 0, c >= 0, c <= j, z3.Or(c == j, z3.And(d < 1, v < 1)))


REGIONS = {"A": (region_a, invariant_a), "B": (region_b, invariant_b)}
