"""A solver's counterexample, run again on the library's eager neuron, in floats that hold it exactly: it is about the equations."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor
from typing import Any

import torch


def emitted(
    impl: Any, *, levels: int, v0: Fraction, currents: Sequence[Fraction], leak: Fraction = Fraction(1)
) -> list[int]:
    """Spikes of the implementation's M-HT neuron.

    They must be those of exact arithmetic: a counterexample that only an error of the implementation reproduces is none.
    """
    column = torch.tensor([[float(i)] for i in currents], dtype=torch.float64)
    spikes, _ = impl.mht(column, levels=levels, theta=1.0, leak=float(leak), v0=float(v0))
    got = [round(float(s)) for s in spikes]
    exact, v = [], v0
    for current in currents:
        m = leak * v + current
        exact.append(min(max(floor(m), 0), levels))
        v = m - exact[-1]
    assert got == exact, f"the implementation emits {got}, exact arithmetic {exact}"
    return got


def if_windows(
    impl: Any, *, levels: int, v0: Fraction, currents: Sequence[Fraction], leak: Fraction = Fraction(1)
) -> list[int]:
    """Spikes of the implementation's IF neuron in each window of L steps with I(t)/L; exact as above."""
    got, exact, v = [], [], v0
    for current in currents:
        v = leak * v
        window = torch.full((levels, 1), float(current / levels), dtype=torch.float64)
        spikes, _ = impl.integrate_and_fire(window, theta=1.0, v0=float(v))
        got.append(round(float(spikes.sum())))
        exact.append(0)
        for _ in range(levels):
            v += current / levels
            exact[-1] += v >= 1
            v -= v >= 1
    assert got == exact, f"the implementation emits {got} a window, exact arithmetic {exact}"
    return got


def show(
    impl: Any, counterexample: Callable[[str], None], why: str, *, levels: int, v0: Fraction, currents: Sequence[Fraction],
    leak: Fraction = Fraction(1),
) -> None:  # fmt: skip
    """Replay a case in which the two neurons must differ, and report it."""
    mht = emitted(impl, levels=levels, v0=v0, currents=currents, leak=leak)
    windows = if_windows(impl, levels=levels, v0=v0, currents=currents, leak=leak)
    assert mht != windows, f"levels={levels}, v0={v0}, currents={currents}: both emit {mht}"
    shown = ", ".join(map(str, currents))
    leaky = "" if leak == 1 else f", leak = {leak}"
    counterexample(
        f"{why}: L = {levels}, theta = 1, v(0) = {v0}{leaky}, I = ({shown}): M-HT emits {mht}, IF {windows} a window"
    )
