"""When float arithmetic rounds nothing, whatever the order of evaluation: then a test may say ``==``."""

from collections.abc import Iterable
from fractions import Fraction

import torch

from theorems.oracle import Trace, Train

# significand bits, smallest and largest magnitude that are safe (normal numbers, no overflow)
FORMATS: dict[torch.dtype, tuple[int, Fraction, Fraction]] = {
    torch.float64: (53, Fraction(1, 2**900), Fraction(2**900)),
    torch.float32: (24, Fraction(1, 2**100), Fraction(2**100)),
    torch.bfloat16: (8, Fraction(1, 2**100), Fraction(2**100)),
    torch.float16: (11, Fraction(1, 2**14), Fraction(2**15)),
}
DTYPES = tuple(FORMATS)


def is_dyadic(value: Fraction) -> bool:
    return value.denominator & (value.denominator - 1) == 0


def unit(values: Iterable[Fraction]) -> Fraction:
    """The largest power of two that divides every value (1 for none, or for zeros)."""
    found = None
    for value in values:
        if value:
            n = value.numerator
            step = Fraction(n & -n, value.denominator)
            found = step if found is None else min(found, step)
    return found or Fraction(1)


def sum_is_exact(terms: Iterable[Fraction], dtype: torch.dtype) -> bool:
    """Every partial sum of the terms, in any order, is a number of the format: multiples of a unit, few enough of them."""
    terms = [abs(term) for term in terms if term]
    if not terms:
        return True
    if not all(is_dyadic(term) for term in terms):
        return False
    bits, low, high = FORMATS[dtype]
    step, total = unit(terms), sum(terms)
    return step >= low and total <= high and total / step <= 2**bits


def fits(value: Fraction, dtype: torch.dtype) -> bool:
    return sum_is_exact([value], dtype)


def floor_is_exact(m: Fraction, theta: Fraction, dtype: torch.dtype) -> bool:
    """Rounding m/theta to nearest doesn't move it across an integer."""
    quotient = m / theta
    distance = abs(quotient - round(quotient))
    return distance == 0 or distance > abs(quotient) * Fraction(1, 2 ** FORMATS[dtype][0])


def trace_is_exact(
    trace: Trace,
    terms: Iterable[Train],
    *,
    theta: Fraction,
    leak: Fraction,
    v0: Fraction,
    dtype: torch.dtype,
    halves: bool = False,
) -> bool:
    """No operation of this trace rounds; ``terms[t]`` are the addends of the current of step t. Counts jump at integers, with
    ``halves`` (neurons that round to the nearest level) between them too."""
    parts = 2 if halves else 1
    if not all(fits(value, dtype) for value in (theta, leak, v0)):
        return False
    before = (v0, *trace.v[:-1])
    return all(
        fits(term, dtype) and fits(s * theta, dtype) for step, s in zip(terms, trace.s, strict=True) for term in step
    ) and all(
        sum_is_exact([*step, leak * u, s * theta], dtype) and floor_is_exact(parts * m, theta, dtype)
        for step, u, s, m in zip(terms, before, trace.s, trace.m, strict=True)
    )
