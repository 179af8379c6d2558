"""The paper's equations on rational numbers, read literally: no rounding, no tensors, one neuron at a time.

A train is a list over time, ``[T]``; ``omega[t][j]`` is row = step of the current, column = step of the input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, gcd
from operator import floordiv

Q = Fraction
ZERO, ONE = Q(0), Q(1)
Train = Sequence[Fraction]


@dataclass(frozen=True)
class Trace:
    """One neuron over time: potential before firing ``m``, spikes ``s``, potential after the reset ``v``."""

    m: tuple[Fraction, ...]
    s: tuple[int, ...]
    v: tuple[Fraction, ...]


@dataclass(frozen=True)
class Rules:
    """What other people's neurons do differently, by choice; the defaults are the paper's."""

    count: Callable[[Fraction, Fraction], int] = floordiv  # of m and theta, before the clip
    # or "hard": to 0 after a spike; "delayed": by subtraction, one step after the spike; "before": a step's spikes are counted once
    # those that the potential before it is worth are taken off
    reset: str = "soft"
    largest_leak: Fraction | None = None
    at_clip: int = 1  # QCFS's gradient at levels 0 and Tq


PAPER = Rules()


def clip(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def mht(
    currents: Train,
    *,
    levels: int,
    theta: Fraction,
    leak: Fraction = ONE,
    v0: Fraction = ZERO,
    rules: Rules = PAPER,
) -> Trace:
    """Eqs. 5-6, or what the rules make of them."""
    ms, ss, vs, v = [], [], [], v0
    leak = leak if rules.largest_leak is None else min(leak, rules.largest_leak)
    for current in currents:
        late = clip(rules.count(v, theta), 0, levels) * theta if rules.reset in ("delayed", "before") else ZERO
        m = leak * v + current - late
        s = clip(rules.count(m, theta), 0, levels)
        v = m - s * theta
        if rules.reset == "hard" and s:
            v = ZERO
        elif rules.reset == "delayed":
            v = m
        elif rules.reset == "before":
            v += late
        ms.append(m)
        ss.append(s)
        vs.append(v)
    return Trace(tuple(ms), tuple(ss), tuple(vs))


def integrate_and_fire(currents: Train, *, theta: Fraction, leak: Fraction = ONE, v0: Fraction = ZERO) -> Trace:
    """Eqs. 1-2."""
    ms, ss, vs, v = [], [], [], v0
    for current in currents:
        m = leak * v + current
        s = 1 if m >= theta else 0
        v = m - s * theta
        ms.append(m)
        ss.append(s)
        vs.append(v)
    return Trace(tuple(ms), tuple(ss), tuple(vs))


def mix(omega: Sequence[Train], x: Train) -> list[Fraction]:
    """The T-GIM of Eq. 7: ``I(t) = sum_j omega[t][j] * x(j)``."""
    return [sum((w * value for w, value in zip(row, x, strict=True)), ZERO) for row in omega]


def spread(currents: Train, levels: int) -> list[Fraction]:
    """``I(t)/L`` for L steps of a one-level neuron, for each window t (Theorem 4.2)."""
    return [current / levels for current in currents for _ in range(levels)]


def windows(train: Sequence[int], levels: int) -> list[int]:
    """Sums of the windows of L steps."""
    return [sum(train[start : start + levels]) for start in range(0, len(train), levels)]


def qcfs(x: Fraction, *, levels: int, scale: Fraction) -> Fraction:
    """Eq. 4."""
    return scale / levels * clip(floor(x * levels / scale + Q(1, 2)), 0, levels)


def qcfs_mask(x: Fraction, *, levels: int, scale: Fraction, rules: Rules = PAPER) -> int:
    """Where the clip of Eq. 4 passes the gradient: ``0 <= floor(x*Tq/scale + 1/2) <= Tq``."""
    level = floor(x * levels / scale + Q(1, 2))
    return rules.at_clip if level in (0, levels) else int(0 < level < levels)


def window(m: Fraction, *, levels: int, theta: Fraction) -> int:
    """The surrogate of Eq. 8: derivative of ``s*theta`` with respect to m."""
    return int(theta / 2 <= m <= (levels + Q(1, 2)) * theta)


@dataclass(frozen=True)
class Gradients:
    """Gradients of one neuron: ``x[j]``, ``omega[t][j]``, ``leak``."""

    x: list[Fraction]
    omega: list[list[Fraction]]
    leak: Fraction


def lmht_gradients(
    x: Train,
    upstream: Train,
    *,
    levels: int,
    theta: Fraction,
    omega: Sequence[Train],
    leak: Fraction,
    v0: Fraction,
    rules: Rules = PAPER,
    windows: Train | None = None,
) -> Gradients:
    """Eqs. 8-9 with the temporal chain dropped; ``upstream[t]`` is dLoss/dout(t). ``windows[t]``: another surrogate's values."""
    trace = mht(mix(omega, x), levels=levels, theta=theta, leak=leak, v0=v0, rules=rules)
    clamped = rules.largest_leak is not None and leak > rules.largest_leak
    steps = range(len(x))
    windows = windows or [Q(window(m, levels=levels, theta=theta)) for m in trace.m]
    g = [upstream[t] * windows[t] for t in steps]
    before = (v0, *trace.v[:-1])
    return Gradients(
        x=[sum((omega[t][j] * g[t] for t in steps), ZERO) for j in steps],
        omega=[[g[t] * x[j] for j in steps] for t in steps],
        leak=ZERO if clamped else sum((g[t] * before[t] for t in steps), ZERO),
    )


def stbp_gradient(trace: Trace, upstream: Train, *, theta: Fraction, leak: Fraction) -> list[Fraction]:
    """Vanilla STBP (Eqs. 2-3): dLoss/dI(t) of an IF/LIF neuron that passes on ``s*theta``, the temporal chain kept.

    ``m(t+1) = leak*v(t) + I(t+1)`` and ``v(t) = m(t) - s(t)*theta``, so with ``h = ds*theta/dm``:
    ``dL/dm(t) = upstream(t)*h(t) + dL/dm(t+1)*leak*(1 - h(t))``.
    """
    gradients, later = [ZERO] * len(trace.m), ZERO
    for t in reversed(range(len(trace.m))):
        h = window(trace.m[t], levels=1, theta=theta)
        later = upstream[t] * h + later * leak * (1 - h)
        gradients[t] = later
    return gradients


def uniform_firing_region(current: Fraction, *, levels: int, theta: Fraction, steps: int, v0: Fraction) -> bool:
    """Corollary 4.3's region, shifted down by ``v(0)/T``; the paper has ``v(0) = 0``.

    ``I in [k*theta, k*theta + theta/T)`` for k = 0..L-1, or ``I < 0``, or ``I >= L*theta``.
    """
    shifted = current + v0 / steps
    inside = any(k * theta <= shifted < k * theta + theta / steps for k in range(levels))
    return inside or shifted < 0 or shifted >= levels * theta


def mean_square_difference(m: int, n: int) -> Fraction:
    """E[(q_m(x) - q_n(x))^2] for x uniform on [0, 1], q_n = QCFS with n levels and scale 1, in closed form.

    ``q_n(x) = x - B(n*x + 1/2)/n`` with the sawtooth ``B(y) = y - floor(y) - 1/2``; its mean square is 1/12, and by Parseval
    E[B(m*x + 1/2) * B(n*x + 1/2)] is ``g^2/(12*m*n)``, g = gcd(m, n), where m/g and n/g are both odd, else ``-g^2/(24*m*n)``.
    """
    g = gcd(m, n)
    both_odd = (m // g) % 2 == 1 and (n // g) % 2 == 1
    correlation = Q(g * g, 12 * m * n) if both_odd else -Q(g * g, 24 * m * n)
    return Q(1, 12 * m * m) + Q(1, 12 * n * n) - 2 * correlation / (m * n)
