"""When float arithmetic rounds nothing, whatever the order of evaluation: then a test may say ``==``.

What a computation on rationals asks of a format is gathered once and held against every format.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from math import inf
from operator import or_

import torch

from theorems.oracle import Trace, Train

# significand bits, exponents of the smallest and the largest magnitude that are safe (normal numbers, no overflow)
FORMATS: dict[torch.dtype, tuple[int, int, int]] = {
    torch.float64: (53, -900, 900),
    torch.float32: (24, -100, 100),
    torch.bfloat16: (8, -100, 100),
    torch.float16: (11, -14, 15),
}
DTYPES = tuple(FORMATS)


@dataclass(frozen=True)
class Precision:
    """Enough for numbers to be exact: significand bits, and exponents that bound their units and magnitudes."""

    bits: float = 0
    low: int = 0
    high: int = 0

    def __or__(self, other: "Precision") -> "Precision":
        """Enough for both."""
        return Precision(max(self.bits, other.bits), min(self.low, other.low), max(self.high, other.high))

    def within(self, dtype: torch.dtype) -> bool:
        bits, low, high = FORMATS[dtype]
        return self.bits <= bits and low <= self.low and self.high <= high


NONE = Precision(bits=inf)  # has what is not dyadic


def is_dyadic(value: Fraction) -> bool:
    return value.denominator & (value.denominator - 1) == 0


def of_sum(*terms: Fraction) -> Precision:
    """For every partial sum of the terms, in any order, to be a number of the format: multiples of a unit, few enough of them."""
    if not all(map(is_dyadic, terms)):
        return NONE
    one = max((term.denominator for term in terms), default=1)
    counts = [abs(term.numerator) * (one // term.denominator) for term in terms]
    if not (joined := reduce(or_, counts, 0)):
        return Precision()
    zeros = (joined & -joined).bit_length() - 1  # the unit: the largest power of two that divides every term
    bits = ((sum(counts) >> zeros) - 1).bit_length()
    low = zeros - (one.bit_length() - 1)
    return Precision(bits, low, low + bits)


def of_floor(m: Fraction, theta: Fraction) -> Precision:
    """For m/theta, rounded to nearest, not to move across an integer."""
    n, d = m.numerator * theta.denominator, m.denominator * theta.numerator
    distance = min(n % d, -n % d)
    return Precision(bits=(abs(n) // distance).bit_length()) if distance else Precision()


def together(parts: Iterable[Precision]) -> Precision:
    return reduce(or_, parts, Precision())


def of_trace(
    trace: Trace, terms: Iterable[Train], *, theta: Fraction, leak: Fraction, v0: Fraction, halves: bool = False
) -> Precision:
    """For no operation of this trace to round; ``terms[t]`` are the addends of the current of step t. Counts jump at integers,
    with ``halves`` (neurons that round to the nearest level) between them too."""
    needed = of_sum(theta) | of_sum(leak) | of_sum(v0)
    u = v0
    for step, s, m, v in zip(terms, trace.s, trace.m, trace.v, strict=True):
        needed |= of_sum(*step, leak * u, s * theta) | of_floor(2 * m if halves else m, theta)
        u = v
    return needed
