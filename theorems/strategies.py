"""Labelled dyadic draws shared by all statements.

Every number is a small multiple of a power of two, so that floats round nothing and a test may ask for ``==``. The dtype of a
case is drawn last, among those in which the whole case is exact (checked on rationals, :mod:`theorems.exact`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import prod
from typing import Any

import torch
from hypothesis import assume, event
from hypothesis import strategies as st
from torch import Tensor

from theorems import oracle
from theorems.exact import DTYPES, Precision, is_dyadic, of_sum, of_trace, together
from theorems.oracle import PAPER, Q, Rules, Trace

INSIDE, NEGATIVE, SATURATED, TIE, NEAR = REGIMES = ("inside", "negative", "saturated", "tie", "next to a tie")
EDGE = "edge of the surrogate's window"
LEAKS = (Q(1), Q(1), Q(1, 2), Q(3, 4), Q(5, 4), Q(3, 2))
NO_LEAK = (Q(1),)
POWERS = (1, 2, 4, 8)  # also the T where 1/T is exact
MULTIPLES = (*POWERS, 3, 5, 49, 41, 4096)  # of a unit, for theta; 41 and 49 punish m * (1/theta), which misses ties
SHAPES = ((), (1,), (3,), (2, 2), (2, 1, 2))
UP_TO_8 = range(1, 9)  # L and T

Grid = tuple[tuple[Fraction, ...], ...]  # [T][N] or [T][T]


@dataclass(frozen=True)
class Case:
    """N neurons over T steps. For :func:`mixed_cases` ``currents`` are the inputs of the T-GIM."""

    levels: int
    theta: Fraction
    leak: Fraction
    v0: tuple[Fraction, ...]  # [N]
    currents: Grid  # [T][N]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    omega: Grid | None = None

    @property
    def steps(self) -> int:
        return len(self.currents)

    def train(self, neuron: int) -> list[Fraction]:
        return [step[neuron] for step in self.currents]

    def trace(self, neuron: int, rules: Rules = PAPER) -> Trace:
        """The oracle's answer for one neuron."""
        train = self.train(neuron)
        currents = train if self.omega is None else oracle.mix(self.omega, train)
        v0 = self.v0[neuron]
        return oracle.mht(currents, levels=self.levels, theta=self.theta, leak=self.leak, v0=v0, rules=rules)

    def traces(self, rules: Rules = PAPER) -> list[Trace]:
        return [self.trace(neuron, rules) for neuron in range(len(self.v0))]

    def tensor(self, values: Sequence[Sequence[Fraction]] | None = None) -> Tensor:
        """``[T, *shape]`` from ``[T][N]``, default: the currents."""
        values = self.currents if values is None else values
        return as_tensor(values, self.dtype).reshape(len(values), *self.shape)

    @property
    def v0_tensor(self) -> Tensor:
        return as_tensor(self.v0, self.dtype).reshape(self.shape)

    def precision(self, spread: bool = False, rules: Rules = PAPER) -> Precision:
        """Enough to round nothing in this case (``spread``: nor in the L*T steps of one-level neurons)."""
        needed = Precision() if self.omega is None else together(map(of_sum, chain(*self.currents, *self.omega)))
        for neuron, (trace, v0) in enumerate(zip(self.traces(rules), self.v0, strict=True)):
            train = self.train(neuron)
            rows = [[x] for x in train]
            if self.omega is not None:
                rows = [[w * x for w, x in zip(row, train, strict=True)] for row in self.omega]
            needed |= of_trace(trace, rows, theta=self.theta, leak=self.leak, v0=v0, halves=rules is not PAPER)
            if spread:
                u = v0
                for current, after in zip(train, trace.v, strict=True):
                    thin = [current / self.levels] * self.levels
                    u *= self.leak
                    steps = oracle.integrate_and_fire(thin, theta=self.theta, v0=u)
                    needed |= of_trace(steps, [[d] for d in thin], theta=self.theta, leak=Q(1), v0=u)
                    u = after
        return needed


def as_tensor(values: Iterable, dtype: torch.dtype) -> Tensor:
    """Rationals, nested to any depth, as a tensor; the caller knows that they are numbers of the dtype."""

    def number(value: object) -> object:
        return float(value) if isinstance(value, Fraction | int) else [number(v) for v in value]  # type: ignore[attr-defined]

    return torch.tensor(number(list(values)), dtype=dtype)


@st.composite
def thresholds(draw: st.DrawFn, divisor: int = 1, multiples: Sequence[int] = MULTIPLES) -> tuple[Fraction, Fraction]:
    """Threshold and the unit of all numbers of a case; theta is a multiple of ``divisor`` units.

    Coarse units make ties frequent; the finest one cannot be resolved by half precision.
    """
    multiple = draw(st.sampled_from(multiples))
    step = Q(2) ** -draw(st.integers(-1, 6))
    return multiple * divisor * step, step


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    regimes: Sequence[str] = REGIMES,
    leaks: Sequence[Fraction] = LEAKS,
    levels: Sequence[int] = UP_TO_8,
    steps: Sequence[int] = UP_TO_8,
    v0: str = "inside",
    uniform: bool = False,
    spread: bool = False,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    multiples: Sequence[int] = MULTIPLES,
    dtypes: Sequence[torch.dtype] = DTYPES,
    keep: Callable[[Fraction, Fraction, Fraction, Fraction], bool] | None = None,
) -> Case:
    """M-HT neurons whose every step lies in a drawn regime of its own current or potential.

    Args:
        regimes: which regimes to draw: INSIDE ``[0, L*theta)``, NEGATIVE, SATURATED ``>= L*theta`` (currents), TIE ``m = k*theta``,
            NEAR, one unit off a tie, and EDGE, ``m = theta/2`` or ``(L + 1/2)*theta`` (potentials).
        leaks: leaks to draw from.
        levels: values of L.
        steps: values of T.
        v0: "inside" ``[0, theta)``, "half" ``theta/2`` or "any".
        uniform: the same current at every step.
        spread: ``I(t)/L`` is dyadic too.
        shapes: shapes of one step to draw from.
        multiples: theta in units, see :func:`thresholds`.
        dtypes: dtypes to draw from, among those that are exact.
        keep: predicate on ``(u, I, theta, L*theta)``, u the leaked potential; a current that fails it is replaced by one in
            [0, L*theta).
    """
    L = draw(st.sampled_from(levels), label="L")
    T = draw(st.sampled_from(steps), label="T")
    divisor = L if spread else 1
    theta, step = draw(thresholds(divisor * (T if uniform else 1), multiples), label="theta, unit")
    leak = draw(st.sampled_from(leaks), label="leak")
    shape = draw(st.sampled_from(shapes), label="shape")
    grain = step * divisor
    width = int(theta / grain)
    starts, trains = [], []
    for _ in range(prod(shape)):
        low, high = (0, width - 1) if v0 == "inside" else (-2 * width, 2 * width)
        v = start = theta / 2 if v0 == "half" else grain * draw(st.integers(low, high), label="v(0)")
        train: list[Fraction] = []
        for _ in range(1 if uniform else T):
            regime = draw(st.sampled_from(regimes), label="regime")
            u = leak * v
            if regime in (TIE, NEAR):
                k = draw(st.integers(0, L + 1), label="k")
                current = k * theta - u + (grain * draw(st.sampled_from((-1, 1))) if regime == NEAR else 0)
                at_the_end = (draw(st.integers(0, L * T), label="k") * theta - u) / T
                if uniform and is_dyadic(at_the_end) and draw(st.booleans(), label="tie at the last step"):
                    current = at_the_end
            elif regime == EDGE:
                current = draw(st.sampled_from((theta / 2, (L + Q(1, 2)) * theta)), label="m") - u
            else:
                low, high = {
                    INSIDE: (0, L * width - 1),
                    NEGATIVE: (-2 * L * width, -1),
                    SATURATED: (L * width, 3 * L * width),
                }[regime]
                current = grain * draw(st.integers(low, high), label="I")
            if (spread and not is_dyadic(current / L)) or (keep and not keep(u, current, theta, L * theta)):
                current = grain * draw(st.integers(0, L * width - 1), label="I")
            event(f"regime {regime}")
            train += [current] * (T if uniform else 1)
            v = oracle.mht([current], levels=L, theta=theta, leak=leak, v0=v).v[0]
        starts.append(start)
        trains.append(train)
    case = Case(L, theta, leak, tuple(starts), tuple(zip(*trains, strict=True)), shape)
    return with_dtype(draw, case, dtypes, spread)


def with_dtype(draw: st.DrawFn, case: Case, dtypes: Sequence[torch.dtype] = DTYPES, spread: bool = False) -> Case:
    needed = case.precision(spread)
    exact = [dtype for dtype in dtypes if needed.within(dtype)]
    assume(exact)  # too many bits even for float64: rare, or Hypothesis's health check complains
    narrow = [dtype for dtype in exact if dtype.itemsize == 2]  # seldom exact, so often drawn where it is
    dtype = draw(st.sampled_from(exact + 2 * narrow), label="dtype")
    event(f"dtype {dtype}")
    return Case(**{**vars(case), "dtype": dtype})


WEIGHTS = (Q(1), Q(0), Q(1, 2), Q(1, 4), Q(-1, 2), Q(3, 4), Q(2), Q(-1))
SWAP = Q(0)


def identity(steps: int) -> Grid:
    return tuple(tuple(Q(int(t == j)) for j in range(steps)) for t in range(steps))


def uniform(steps: int) -> Grid:
    return ((Q(1, steps),) * steps,) * steps


@st.composite
def mixed_cases(
    draw: st.DrawFn, *, mixing: str = "any", v0: str = "any", dtypes: Sequence[torch.dtype] = DTYPES, **options: Any
) -> Case:
    """LM-HT neurons (Eq. 7) whose potentials lie in drawn regimes, as in :func:`cases`, which also takes the ``options``.

    The current is drawn first, then a dyadic T-GIM and inputs that it mixes into that current.

    Args:
        mixing: "any" (a product of row swaps and row additions: neither symmetric nor causal), "identity", or "uniform" (``1/T``;
            give ``steps=POWERS``).
        v0: as in :func:`cases`.
        dtypes: dtypes to draw from.
        options: of :func:`cases`.
    """
    options = {"regimes": (*REGIMES, EDGE), **options}
    base = draw(cases(v0=v0, uniform=mixing == "uniform", **options))
    T, x = base.steps, [list(step) for step in base.currents]
    omega = identity(T) if mixing != "uniform" else uniform(T)
    if mixing == "uniform" and T > 1:  # I is the mean of x: move some of it from one step to another
        for neuron in range(len(base.v0)):
            i, j = draw(st.permutations(range(T)), label="steps")[:2]
            moved = draw(st.integers(-4, 4), label="moved") * base.theta / 4
            x[i][neuron] += moved
            x[j][neuron] -= moved
    if mixing == "any":
        rows = [
            [scale * w for w in row]
            for scale, row in zip(draw(st.tuples(*[st.sampled_from((Q(1), Q(2), Q(1, 2)))] * T)), omega, strict=True)
        ]
        row = st.integers(0, T - 1)
        operations = draw(
            st.lists(st.tuples(row, row, st.sampled_from((SWAP, Q(1), Q(-1), Q(1, 2)))), max_size=T), label="Omega"
        )
        operations = [(i, j, factor) for i, j, factor in operations if i != j]
        diagonal = [row[t] for t, row in enumerate(rows)]
        for i, j, factor in operations:
            if factor == SWAP:
                rows[i], rows[j] = rows[j], rows[i]
            else:
                rows[i] = [a + factor * b for a, b in zip(rows[i], rows[j], strict=True)]
        for i, j, factor in reversed(operations):  # x = Omega^-1 * I
            if factor == SWAP:
                x[i], x[j] = x[j], x[i]
            else:
                x[i] = [a - factor * b for a, b in zip(x[i], x[j], strict=True)]
        x = [[value / scale for value in step] for scale, step in zip(diagonal, x, strict=True)]
        omega = tuple(map(tuple, rows))
    case = Case(base.levels, base.theta, base.leak, base.v0, tuple(map(tuple, x)), base.shape, omega=omega)
    return with_dtype(draw, case, dtypes)


@st.composite
def quantised_cases(draw: st.DrawFn, dtypes: Sequence[torch.dtype] = DTYPES) -> Case:
    """QCFS: ``theta`` is the scale, ``levels`` is Tq, the currents ``[n][1]`` are n inputs in all regimes, often on a tie.

    Scale and Tq are powers of two, so that ``x * Tq / scale`` is exact in any order of evaluation.
    """
    Tq = draw(st.sampled_from((1, 2, 4, 8, 16, 32)), label="Tq")
    scale = Q(2) ** draw(st.integers(-3, 4))
    grain = scale / Tq / draw(st.sampled_from((2, 4, 64)))
    reach = int(2 * scale / grain)
    integers = draw(st.lists(st.integers(-reach, reach), min_size=1, max_size=8), label="x")
    x = tuple((n * grain,) for n in integers)
    needed = together(of_sum(number * Tq + scale / 2) for (number,) in x)
    exact = [dtype for dtype in dtypes if needed.within(dtype)]
    return Case(Tq, scale, Q(1), (Q(0),), x, (), draw(st.sampled_from(exact), label="dtype"))


@st.composite
def float_cases(draw: st.DrawFn, *, mixed: bool = False, uniform: bool = False, steps: Sequence[int] = UP_TO_8) -> Case:
    """Arbitrary floats, where rounding is real; with a T-GIM if ``mixed``. Float64 or float32, v(0) in [0, theta)."""
    dtype = draw(st.sampled_from((torch.float64, torch.float32)), label="dtype")

    def number(low: float, high: float) -> st.SearchStrategy[Fraction]:
        ends = (float(torch.tensor(end, dtype=dtype)) for end in (low, high))
        return st.floats(*ends, width=32 if dtype == torch.float32 else 64, allow_subnormal=False).map(Fraction)

    L, T = (draw(st.sampled_from(values), label=name) for values, name in ((UP_TO_8, "L"), (steps, "T")))
    theta = draw(number(0.1, 4), label="theta")
    leak = Q(1) if uniform else draw(number(0.5, 1.5), label="leak")
    reach = 2 * L * float(theta)
    neurons = draw(st.integers(1, 3), label="N")
    row = st.tuples(*[number(-reach, reach)] * neurons)
    x = (draw(row, label="I"),) * T if uniform else draw(st.tuples(*[row] * T), label="x")
    omega = draw(st.tuples(*[st.tuples(*[number(-1, 1)] * T)] * T), label="Omega") if mixed else None
    v0 = draw(st.tuples(*[number(0, float(theta) / 1.01)] * neurons), label="v(0)")
    return Case(L, theta, leak, v0, x, (neurons,), dtype, omega)
