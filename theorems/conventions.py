"""Choices in which known neurons differ from the paper, recognised by their answers: a convention is not a bug.

A neuron that answers a battery of exact cases as one set of :class:`theorems.oracle.Rules` does, and not as the paper's, has these
rules for conventions. They are named, each with its smallest example; Eqs. 1-9 are then asked under them, and every statement
as the paper has it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from math import ceil, floor, isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from theorems import oracle
from theorems.oracle import PAPER, Q, Rules
from theorems.search import describe, smallest
from theorems.strategies import Case

if TYPE_CHECKING:
    from theorems.impl import Loaded

ABOVE = "fires above the threshold, not at it (> instead of >=)"
NEAREST = "rounds to the nearest level instead of down"
NEAREST_UP = "rounds to the nearest level instead of down, half a level up"
HARD = "hard reset: to 0 after a spike, not by subtraction"
DELAYED = "resets one step after the spike"
LOST = "loses a spike where the reset left more than theta"
LEAK = "clamps a leak above 1 to 1"
SURROGATE = "another surrogate gradient than Eq. 8's window"
CLIP = "no gradient at the clip's bounds (QCFS, levels 0 and Tq)"
SINGLE = "spikes are float32, which turns half-precision potentials into float32"

# name -> what it changes in the rules; at most one of each group at a time
GROUPS: tuple[dict[str, dict[str, Any]], ...] = (
    {
        ABOVE: {"count": lambda m, theta: ceil(m / theta) - 1},
        NEAREST: {"count": lambda m, theta: round(m / theta)},
        NEAREST_UP: {"count": lambda m, theta: floor(m / theta + Q(1, 2))},
    },
    {HARD: {"reset": "hard"}, DELAYED: {"reset": "delayed"}, LOST: {"reset": "before"}},
    {LEAK: {"largest_leak": Q(1)}},
)  # fmt: skip
STEEPEST = 100  # the largest d(out)/dm of a surrogate, with room: a sigmoid of slope 25 has 25/4 * theta
CURRENTS = [Q(n, 4) for n in (-2, 1, 2, 3, 4, 6, 7, 12)]
LEAKS = (Q(1), Q(5, 4), Q(1, 2))


@dataclass
class Conventions:
    """What was recognised: rules by method, and by name of a convention the line that shows it; and lines on what was not."""

    rules: dict[str, Rules] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def battery() -> Iterator[Case]:
    """All pairs of currents and one more step, from v(0) = 0, 1/2 and 2, L = 2 or 1, theta = 1."""
    starts, pairs = (Q(0), Q(1, 2), Q(2)), list(product(CURRENTS, repeat=2))
    trains = [(*pair, Q(1, 2)) for pair in pairs] * len(starts)
    v0 = tuple(start for start in starts for _ in pairs)
    for leak in LEAKS:
        yield Case(2, Q(1), leak, v0, tuple(zip(*trains, strict=True)), (len(trains),))


def answers(impl: "Loaded", method: str, case: Case) -> Any:
    """The implementation's own spikes (and potentials, where it tells them), as numbers of each neuron."""
    x, leak = case.tensor(), float(case.leak)
    if method == "lmht":
        omega = torch.eye(case.steps, dtype=x.dtype)
        leaks = torch.tensor(leak, dtype=x.dtype)
        return (impl.lmht(x, levels=case.levels, theta=1.0, omega=omega, leak=leaks, v0=case.v0_tensor),)
    levels = {"levels": case.levels} if method == "mht" else {}
    return getattr(impl, method)(x, theta=1.0, leak=leak, v0=case.v0_tensor, **levels)


def rules_of(impl: "Loaded", method: str) -> tuple[Rules, tuple[str, ...], str]:
    """The rules that explain every answer of a method, with as few conventions as possible; if none do, the paper's, and a line
    that shows it."""
    asked = [replace(case, levels=1) if method == "integrate_and_fire" else case for case in battery()]
    try:
        found = [[part.detach().double() for part in answers(impl, method, case)] for case in asked]
    except Exception:  # whatever it is, a test will show it
        return PAPER, (), ""
    if any(part.shape != (case.steps, *case.shape) for case, parts in zip(asked, found, strict=True) for part in parts):
        return PAPER, (), ""  # a test will show this, too
    choices = (tuple(name for name in names if name) for names in product(*(("", *group) for group in GROUPS)))
    for chosen in sorted(choices, key=len):
        rules = with_conventions(chosen) if chosen else PAPER
        if all(explains(rules, case, parts) for case, parts in zip(asked, found, strict=True)):
            return rules, chosen, ""
    return PAPER, (), next(differences(asked, found))


def differences(asked: list[Case], found: list[list[Tensor]]) -> Iterator[str]:
    """What answers that are not the paper's are."""
    for case, parts in zip(asked, found, strict=True):
        for neuron in range(len(case.v0)):
            currents = tuple((value,) for value in case.train(neuron))
            one = replace(case, v0=(case.v0[neuron],), currents=currents, shape=(1,))
            own = [part[:, neuron : neuron + 1] for part in parts]
            if not explains(PAPER, one, own):
                says = ", ".join(
                    f"{what} {train(map(number, part[:, 0].tolist()))}"
                    for what, part in zip(("s =", "v ="), own, strict=False)
                )
                yield describe(one, f"{says}; the paper: {shown(one.trace(0))}")


def with_conventions(names: tuple[str, ...]) -> Rules:
    changes = {
        key: value
        for group in GROUPS
        for name, change in group.items()
        if name in names
        for key, value in change.items()
    }
    return replace(PAPER, **changes)


def explains(rules: Rules, case: Case, parts: list[Tensor]) -> bool:
    """Neuron by neuron, so that a rule that is not the neuron's is soon left."""
    columns = [part.T.tolist() for part in parts]
    for neuron in range(len(case.v0)):
        trace = case.trace(neuron, rules)
        expected = ([float(s) for s in trace.s], [float(v) for v in trace.v])
        if any(column[neuron] != want for column, want in zip(columns, expected, strict=False)):
            return False
    return True


def example(name: str, names: tuple[str, ...]) -> str:
    """The smallest case in which it matters, beside the neuron's other conventions."""
    others = with_conventions(tuple(other for other in names if other != name))
    rules = with_conventions(names)

    def differs(case: Case) -> bool:
        return case.levels == 1 and case.trace(0, rules) != case.trace(0, others)

    case = smallest(differs, leaks=LEAKS[:2] if name == LEAK else LEAKS[:1], v0=None if name == LEAK else (Q(0),))
    own, paper = case.trace(0, rules), case.trace(0)
    leak = "" if case.leak == 1 else f", lambda = {case.leak}"
    start = "" if not case.v0[0] else f", v(0) = {case.v0[0]}"
    return f"L = 1, theta = 1{leak}{start}, I = {train(case.train(0))}: {shown(own)}; the paper: {shown(paper)}"


def shown(trace: oracle.Trace) -> str:
    return f"s = {train(trace.s)}, v = {train(trace.v)}"


def number(value: float) -> str:
    """As a fraction, as the paper's is shown, unless that is a long one."""
    short = isfinite(value) and Q(value).denominator <= 64
    return str(Q(value)) if short else f"{value:g}"


def train(values: Any) -> str:
    return "(" + ", ".join(map(str, values)) + ")"


def recognise(impl: "Loaded") -> Conventions:
    """Asks every method that there is."""
    found = Conventions()
    by_names: dict[tuple[str, ...], list[str]] = {}
    for method in ("integrate_and_fire", "mht", "lmht"):
        if impl.provides(method):
            rules, names, unlike = rules_of(impl, method)
            found.rules[method] = rules
            found.unknown += [f"{method} fits no known neuron: {unlike}"] if unlike else []
            by_names.setdefault(names, []).append(method)
    for names, methods in by_names.items():
        where = "" if len(by_names) == 1 else f" in {' and '.join(methods)}"
        for name in names:
            found.lines[name] = f"{name}{where}: {example(name, names)}"
    for name, look in ((SURROGATE, surrogate), (CLIP, clip), (SINGLE, single)):
        if name != SINGLE and not impl.gradients:
            continue
        try:
            line = look(impl)
        except Exception:  # a test will show it
            line = None
        if line:
            found.lines[name] = f"{name}: {line}"
    if CLIP in found.lines:
        found.rules["qcfs"] = replace(PAPER, at_clip=0)
    return found


def gradient(impl: "Loaded", method: str, x: list[float], **arguments: Any) -> list[float] | None:
    """d(out)/dx, element by element; None if there is none."""
    if not impl.provides(method):
        return None
    leaf = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    out = getattr(impl, method)(leaf, **arguments)
    if not out.requires_grad:
        return None
    out.backward(torch.ones_like(out))
    return None if leaf.grad is None else leaf.grad[0].tolist()


def surrogate(impl: "Loaded") -> str | None:
    """What stands for the derivative of a staircase that rises: nowhere negative, and of its size; anything else is a fault."""
    one = torch.ones(1, 1, dtype=torch.float64)
    for theta, levels in product((1, 2), (1, 2)):
        ms = [theta * m for m in (Q(1), Q(0), Q(1, 2), Q(3, 2), Q(5, 2), Q(1, 4), Q(4), Q(-1))]
        got = gradient(
            impl, "lmht", [float(m) for m in ms], levels=levels, theta=float(theta), omega=one, leak=one[0, 0]
        )
        expected = [oracle.window(m, levels=levels, theta=Q(theta)) for m in ms]
        if not got or not any(got) or not all(0 <= value <= STEEPEST for value in got):
            return None
        for m, value, paper in zip(ms, got, expected, strict=True):
            if value != paper:
                return f"L = {levels}, theta = {theta}, m = {m}: d(out)/dm = {value:.6g}; the paper: {paper}"
    return None


def clip(impl: "Loaded") -> str | None:
    x = [Q(n) for n in (-2, 0, 1, 2, 4, 6)]
    got = gradient(impl, "qcfs", [float(value) for value in x], levels=4, scale=torch.tensor(4.0, dtype=torch.float64))
    if got == [oracle.qcfs_mask(value, levels=4, scale=Q(4), rules=replace(PAPER, at_clip=0)) for value in x]:
        return "Tq = 4, scale = 4, x = 0: d(out)/dx = 0; the paper: 1 (torch.clamp: 1 up to torch 2.13, 0 from 2.14 on)"
    return None


def single(impl: "Loaded") -> str | None:
    for method in ("integrate_and_fire", "mht"):
        if impl.provides(method):
            levels = {"levels": 2} if method == "mht" else {}
            wide, half = (getattr(impl, method)(torch.zeros(1, 1, dtype=dtype), theta=1.0, **levels)
                          for dtype in (torch.float64, torch.bfloat16))  # fmt: skip
            if wide[1].dtype == torch.float64 and half[1].dtype == torch.float32:
                return "I = (0) in bfloat16: v in float32; the paper: v in bfloat16"
    return None
