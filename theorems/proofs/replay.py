"""A solver's counterexample, run again on the implementation under test, in floats that hold it exactly."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch

Trains = tuple[list[int], list[int]]


def trains(
    impl: Any, *, levels: int, v0: Fraction, currents: Sequence[Fraction], leak: Fraction = Fraction(1)
) -> Trains:
    """Spikes of the M-HT neuron at every step, and of the IF neuron summed over every window, from the implementation.

    The implementation must agree with exact arithmetic on both: a counterexample that it only reproduces by an error of its
    own is none.
    """
    column = torch.tensor([[float(i)] for i in currents], dtype=torch.float64)
    spikes, potentials = impl.mht(column, levels=levels, theta=1.0, leak=float(leak), v0=float(v0))
    mht = [round(float(s)) for s in spikes]
    windows, v = [], float(v0)
    for i in currents:
        window = torch.full((levels, 1), float(i / levels), dtype=torch.float64)
        spikes, potentials = impl.integrate_and_fire(window, theta=1.0, v0=float(leak) * v)
        windows.append(round(float(spikes.sum())))
        v = float(potentials[-1, 0])
    exact = _exact(levels, v0, currents, leak)
    assert (mht, windows) == exact, f"the implementation gives {(mht, windows)}, exact arithmetic {exact}"
    return mht, windows


def show(
    impl: Any, counterexample: Callable[[str], None], why: str, *, levels: int, v0: Fraction, currents: Sequence[Fraction],
    leak: Fraction = Fraction(1),
) -> None:  # fmt: skip
    """Replay a case in which the two neurons must differ, and report it."""
    mht, windows = trains(impl, levels=levels, v0=v0, currents=currents, leak=leak)
    assert mht != windows, f"levels={levels}, v0={v0}, currents={currents}: both emit {mht}"
    shown = ", ".join(map(str, currents))
    leaky = "" if leak == 1 else f", leak = {leak}"
    counterexample(
        f"{why}: L = {levels}, theta = 1, v(0) = {v0}{leaky}, I = ({shown}): M-HT emits {mht}, IF {windows} a window"
    )


def _exact(levels: int, v0: Fraction, currents: Sequence[Fraction], leak: Fraction) -> Trains:
    def run(u: Fraction, current: Fraction, top: int) -> tuple[int, Fraction]:
        m = u + current
        s = min(max(m.__floor__(), 0), top)
        return s, m - s

    mht, windows, v, v_if = [], [], v0, v0
    for current in currents:
        s, v = run(leak * v, current, levels)
        mht.append(s)
        v_if, total = leak * v_if, 0
        for _ in range(levels):
            s, v_if = run(v_if, current / levels, 1)
            total += s
        windows.append(total)
    return mht, windows
