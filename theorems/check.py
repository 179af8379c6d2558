"""Calls of the implementation under test and comparisons whose failure can be pasted into a Python shell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from theorems import oracle
from theorems.impl import Loaded
from theorems.oracle import PAPER, Rules, clip
from theorems.strategies import Case, as_tensor


def literal(value: object) -> str:
    """Python source of an argument."""
    if isinstance(value, Tensor):
        grad = ", requires_grad=True" if value.requires_grad else ""
        return f"torch.tensor({value.detach().tolist()}, dtype={value.dtype}{grad})"
    return repr(value)


def identical(a: Tensor, b: Tensor) -> bool:
    """NaN is NaN: that it is none is asked elsewhere."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


class Call:
    """One call of the contract: its result, and the source that repeats it, backward pass included."""

    def __init__(self, impl: Loaded, method: str, x: Tensor, **arguments: Any) -> None:
        self.impl, self.method, self.x, self.arguments = impl, method, x, arguments
        self.given = {
            name: copied(value) for name, value in {"x": x, **arguments}.items()
        }  # whatever the call does to them
        self.upstream: Tensor | None = None
        self.raised: type[Exception] | None = None
        try:
            self.result = getattr(impl, method)(x, **arguments)
        except Exception as error:
            self.raised = type(error)
            error.add_note(f"reproduce:\n{self.source}")
            raise
        for part in self.result if isinstance(self.result, tuple | list) else (self.result,):
            if not bool(torch.isfinite(part).all()):
                shown = ", ".join(
                    f"{name} = {value}" for name, value in arguments.items() if isinstance(value, int | float)
                )
                raise AssertionError(
                    f"{method} at {shown}: not finite: {part.flatten().tolist()}\nreproduce:\n{self.source}"
                )

    def backward(self, upstream: Tensor | None = None) -> None:
        """Backward pass from ``upstream``; by default from ones."""
        self.upstream = torch.ones_like(self.result) if upstream is None else upstream
        try:
            self.result.backward(self.upstream)
        except Exception as error:
            error.add_note(f"reproduce:\n{self.source}")
            raise

    def grad(self, name: str) -> Tensor:
        """Gradient of ``x`` or of a named argument, after a backward pass."""
        leaf = self.x if name == "x" else self.arguments[name]
        assert leaf.grad is not None, f"no gradient of {name}\n{self.source}"
        assert leaf.grad.shape == leaf.shape, f"gradient of {name} has shape {tuple(leaf.grad.shape)}\n{self.source}"
        return leaf.grad

    @property
    def repeats(self) -> bool:
        """Whether a freshly loaded implementation gives the same result, or raises the same; where it can't be loaded again,
        nothing is said."""
        try:
            fresh = self.impl.fresh()
        except Exception:  # a neuron made on the spot
            return True
        given = {name: copied(value) for name, value in self.given.items()}
        try:
            again = getattr(fresh, self.method)(given.pop("x"), **given)
            if self.raised:
                return False
            parts = [part if isinstance(part, tuple | list) else (part,) for part in (self.result, again)]
            return all(identical(a, b) for a, b in zip(*parts, strict=True))
        except Exception as error:
            return type(error) is self.raised

    @property
    def source(self) -> str:
        given = self.given
        leaves = [name for name, value in given.items() if isinstance(value, Tensor) and value.requires_grad]
        x, *rest = [(name, name if name in leaves else literal(value)) for name, value in given.items()]
        arguments = ", ".join([x[1], *(f"{name}={text}" for name, text in rest)])
        call = f"Loaded({self.impl.target!r}).{self.method}({arguments})"
        lines = ["import torch; from theorems.impl import Loaded"]
        if not self.repeats:
            lines.append(
                "# not repeatable: a freshly loaded neuron answers otherwise, so it depends on what was called before"
            )
        lines += [f"{name} = {literal(given[name])}" for name in leaves]
        if self.upstream is None:
            return "\n".join([*lines, f"print({call})"])
        grads = ", ".join(f"{name}.grad" for name in leaves)
        return "\n".join([*lines, f"out = {call}", f"out.backward({literal(self.upstream)})", f"print(out, {grads})"])


def copied(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def suited(impl: Loaded, method: str, case: Case) -> Case:
    """The case in a dtype that holds it exactly under the implementation's conventions too."""
    rules = impl.rules(method)
    exact = rules is PAPER or case.precision(rules=rules).within(case.dtype)
    return case if exact else replace(case, dtype=torch.float64)


def mht(impl: Loaded, case: Case) -> Call:
    case = suited(impl, "mht", case)
    return Call(
        impl,
        "mht",
        case.tensor(),
        levels=case.levels,
        theta=float(case.theta),
        leak=float(case.leak),
        v0=case.v0_tensor,
    )


def integrate_and_fire(impl: Loaded, case: Case) -> Call:
    """The case's L*T-step neuron of one level that gets ``I(t)/L`` (at L = 1: the case itself)."""
    thin = [[current / case.levels for current in step] for step in case.currents for _ in range(case.levels)]
    case = suited(impl, "integrate_and_fire", case)
    return Call(
        impl, "integrate_and_fire", case.tensor(thin), theta=float(case.theta), leak=float(case.leak), v0=case.v0_tensor
    )


def lmht(impl: Loaded, case: Case, *, gradient: bool = False) -> Call:
    case = suited(impl, "lmht", case)
    assert case.omega is not None
    return Call(
        impl,
        "lmht",
        case.tensor().requires_grad_(gradient),
        levels=case.levels,
        theta=float(case.theta),
        omega=as_tensor(case.omega, case.dtype).requires_grad_(gradient),
        leak=torch.tensor(float(case.leak), dtype=case.dtype, requires_grad=gradient),
        v0=case.v0_tensor,
    )


def rationals(values: Tensor) -> list[list[Fraction]]:
    """``[T, ...]`` as ``[T][N]``, exactly; a value that is not finite fails the test."""
    flat = values.detach().to(torch.float64).reshape(len(values), -1)
    assert bool(torch.isfinite(flat).all()), f"not finite: {values}"
    return [[Fraction(value) for value in step] for step in flat.tolist()]


Trains = Sequence[Sequence[Fraction | int]]  # [N][T]


def transposed(values: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(row) for row in zip(*values, strict=True)]


def same(case: Case, claim: str, expected: Mapping[str, Trains], got: Mapping[str, Trains], *calls: Call) -> None:
    """Fails unless ``expected[key] == got[key]`` for every key and neuron, and says everything about the first that differs."""
    for key, trains in got.items():
        assert len(trains) == len(expected[key]), (
            f"{claim}: {key} for {len(trains)} neurons instead of {len(expected[key])}"
        )
    for neuron in range(len(case.v0)):
        wrong = [key for key in got if list(expected[key][neuron]) != list(got[key][neuron])]
        if wrong:
            one = {key: (expected[key][neuron], got[key][neuron]) for key in got}
            raise MismatchError(case, claim, neuron, wrong, one, calls)


def train(values: Sequence[Fraction | float]) -> str:
    return "[" + ", ".join(str(value) for value in values) + "]"


class MismatchError(AssertionError):
    """One neuron of a case that is not what the claim says; ``parts`` are what was expected and got, by key."""

    def __init__(
        self,
        case: Case,
        claim: str,
        neuron: int,
        wrong: Sequence[str],
        parts: Mapping[str, tuple[Sequence[Fraction | float], Sequence[Fraction | float]]],
        calls: Sequence[Call],
    ) -> None:
        currents, omega = train(case.train(neuron)), "; ".join(map(train, case.omega or ()))
        rows: list[tuple[str, object]] = [
            ("theta", case.theta),
            ("L, T", f"{case.levels}, {case.steps}"),
            ("leak", case.leak),
            ("v(0)", case.v0[neuron]),
            ("x" if omega else "currents", currents),
            *([("Omega", omega)] if omega else []),
            ("neuron, dtype", f"{neuron} of {len(case.v0)}, {case.dtype}"),
        ]
        for key, (expected, got) in parts.items():
            rows += [(key, f"expected {train(expected)}"), ("", f"got      {train(got)}")]
        lines = [f"{claim}: {' and '.join(wrong)} wrong", *(f"  {name:<14}{value}" for name, value in rows)]
        super().__init__("\n".join([*lines, "reproduce:", *(call.source for call in calls)]))
        expected, got = parts[wrong[0]]
        self.line = (
            f"L = {case.levels}, theta = {case.theta}, "
            + f"lambda = {case.leak}, " * (case.leak != 1)
            + f"v(0) = {case.v0[neuron]}, I = {currents}"
            + f", Omega = {omega}" * bool(omega)
            + f": {wrong[0]} {train(got)}, not {train(expected)}"
        )


def same_as_oracle(case: Case, claim: str, call: Call) -> None:
    """Spikes and potentials of :func:`mht`, or of :func:`integrate_and_fire` at L = 1, equal the equations', as the
    implementation's conventions read them."""
    traces = case.traces(call.impl.rules(call.method))
    spikes, v = (rationals(part) for part in call.result)
    same(
        case,
        claim,
        {"spikes": [trace.s for trace in traces], "v": [trace.v for trace in traces]},
        {"spikes": transposed(spikes), "v": transposed(v)},
        call,
    )


def rounding(case: Case, growth: Fraction = Fraction(1)) -> Fraction:
    """Bound on the error of a potential: operations so far times half an ulp of the largest number that can occur.

    A step of the neuron is at most 2*T + 4 operations (mixing, leak, current, reset), one of L one-level steps 5; ``leak^T``
    (``growth`` at least) amplifies the early ones.
    """
    eps = Fraction(torch.finfo(case.dtype).eps)
    weight = max((sum(abs(w) for w in row) for row in case.omega), default=Fraction(1)) if case.omega else Fraction(1)
    largest = case.levels * case.theta + max(abs(v) for v in case.v0)
    largest += max(weight, 1) * sum(max(abs(x) for x in step) for step in case.currents)
    amplify = max(case.leak, growth) ** case.steps
    return eps * case.steps * max(2 * case.steps + 4, 5 * case.levels) * largest * amplify**2


def near_tie(m: Sequence[Fraction], levels: int, theta: Fraction, bound: Fraction, rules: Rules = PAPER) -> bool:
    """Whether rounding could change a spike count."""
    reach = 2 * bound  # a potential on the bound itself is near, on either side
    ends = ((rules.count(value - reach, theta), rules.count(value + reach, theta)) for value in m)
    return any(clip(low, 0, levels) != clip(high, 0, levels) for low, high in ends)


def within_rounding(case: Case, claim: str, call: Call) -> None:
    """Spikes equal the equations' where no potential is within rounding of a tie; potentials and outputs up to rounding."""
    rules = call.impl.rules(call.method)
    traces, bound = case.traces(rules), rounding(case)
    keep = [n for n, trace in enumerate(traces) if not near_tie(trace.m, case.levels, case.theta, bound, rules)]
    if isinstance(call.result, Tensor):
        got = transposed(rationals(call.result))
        counts = [[round(out / case.theta) for out in train] for train in got]
        key, exact = "out", [[s * case.theta for s in train] for train in counts]
    else:
        counts, got = (transposed(rationals(part)) for part in call.result)
        key, exact = "v", [list(trace.v) for trace in traces]
    expected = {"spikes": [traces[n].s if n in keep else counts[n] for n in range(len(traces))]}
    same(case, claim, expected, {"spikes": counts}, call)
    for n in keep:
        if max(abs(a - b) for a, b in zip(exact[n], got[n], strict=True)) > bound:
            parts = {key: ([float(a) for a in exact[n]], [float(b) for b in got[n]])}
            raise MismatchError(case, f"{claim}, up to rounding (here {float(bound):.1g})", n, [key], parts, [call])


@dataclass(frozen=True)
class Both:
    """M-HT over T steps beside the one-level neuron over L*T steps, which gets ``I(t)/L``: what Theorem 4.2 compares."""

    calls: tuple[Call, ...]
    spikes: Trains  # [N][T] of M-HT
    windows: Trains  # [N][T], spikes of each window of L one-level steps
    v: Trains  # [N][T]
    v_ends: Trains  # [N][T], v_IF(L*t)

    @property
    def agree(self) -> bool:
        return self.spikes == self.windows and self.v == self.v_ends

    def assert_agree(self, case: Case, claim: str) -> None:
        mht, one_level = {"spikes": self.spikes, "v": self.v}, {"spikes": self.windows, "v": self.v_ends}
        same(case, f"{claim} (expected: M-HT, got: windows of the one-level neuron)", mht, one_level, *self.calls)


def both(impl: Loaded, case: Case) -> Both:
    """Asks the implementation; leak acts at every step, also of the one-level neuron."""
    one, many = integrate_and_fire(impl, case), mht(impl, case)
    train, potential = (transposed(rationals(part)) for part in one.result)
    spikes, v = (transposed(rationals(part)) for part in many.result)
    L = case.levels
    windows = [[sum(s[t : t + L]) for t in range(0, len(s), L)] for s in train]
    return Both((many, one), spikes, windows, v, [end[L - 1 :: L] for end in potential])


def both_by_oracle(case: Case) -> Both:
    many, one, L = case.traces(), [], case.levels
    for neuron, v0 in enumerate(case.v0):
        thin = oracle.spread(case.train(neuron), L)
        one.append(oracle.integrate_and_fire(thin, theta=case.theta, leak=case.leak, v0=v0))
    windows = [oracle.windows(trace.s, L) for trace in one]
    ends = [list(trace.v[L - 1 :: L]) for trace in one]
    return Both((), [list(trace.s) for trace in many], windows, [list(trace.v) for trace in many], ends)


def replay(impl: Loaded, case: Case) -> str:
    """A counterexample to Theorem 4.2 (i) on the implementation: it computes both sides right, and they differ."""
    expected, found = both_by_oracle(case), both(impl, case)
    for side in ("spikes", "windows", "v", "v_ends"):
        same(case, "counterexample", {side: getattr(expected, side)}, {side: getattr(found, side)}, *found.calls)
    assert found.spikes != found.windows, f"no counterexample: {case}"
    spikes, windows = ([int(s) for s in train] for train in (*found.spikes, *found.windows))
    return f"M-HT emits {spikes}, IF {windows} a window"


def windowwise(impl: Loaded, case: Case) -> Both:
    """As :func:`both`, but the leak acts between windows and not inside them (Theorem A.2)."""
    many, L = mht(impl, case), case.levels
    spikes, v = (transposed(rationals(part)) for part in many.result)
    calls, windows, ends, potential = [many], [], [], case.v0_tensor
    for current in case.tensor():
        thin = (current / L).expand(L, *case.shape)
        call = Call(impl, "integrate_and_fire", thin, theta=float(case.theta), v0=float(case.leak) * potential)
        potential = call.result[1][-1]
        calls.append(call)
        windows.append([sum(train) for train in transposed(rationals(call.result[0]))])
        ends += rationals(potential[None])
    return Both(tuple(calls), spikes, transposed(windows), v, transposed(ends))
