"""What the suite tests: the contract, our own eager implementation of it, and how ``--impl`` finds another one."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor

from lmht import functional
from theorems.conventions import Conventions, recognise
from theorems.oracle import PAPER, Rules

METHODS = ("integrate_and_fire", "mht", "lmht", "qcfs")


class Implementation(Protocol):
    """The contract of ``--impl``. ``T`` leads every tensor; dtype and device follow the input.

    ``v`` is the potential after each step's reset, ``[T, ...]``; ``v0`` is a number or a tensor of the shape of one step. A
    method that is missing makes its tests skip with "NAME not provided".
    """

    name: str

    def integrate_and_fire(
        self, current: Tensor, *, theta: float, leak: float = 1.0, v0: float | Tensor = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Spikes in {0, 1} and potentials (Eqs. 1-2)."""

    def mht(
        self, current: Tensor, *, levels: int, theta: float, leak: float = 1.0, v0: float | Tensor = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Spikes in {0..levels} and potentials (Eqs. 5-6)."""

    def lmht(
        self, x: Tensor, *, levels: int, theta: float, omega: Tensor, leak: Tensor, v0: float | Tensor = 0.0
    ) -> Tensor:
        """``spikes * theta`` (Eqs. 7-9); differentiable in x, omega ``[T, T]`` and leak ``[]``, the temporal chain detached."""

    def qcfs(self, x: Tensor, *, levels: int, scale: Tensor) -> Tensor:
        """The quantised ANN's activation (Eq. 4), differentiable in x and scale."""


class Eager:
    """``lmht.functional``, unchanged: the default of ``--impl``."""

    name = "lmht, eager"
    integrate_and_fire = staticmethod(functional.integrate_and_fire)
    mht = staticmethod(functional.mht)
    lmht = staticmethod(functional.lmht)
    qcfs = staticmethod(functional.qcfs)


eager = Eager()
DEFAULT = "theorems.impl:eager"


class Loaded:
    """An implementation as the tests see it: a method that it lacks skips the test instead of failing it."""

    def __init__(self, target: str, gradients: bool = True, strict: bool = False) -> None:
        """``strict``: whatever its conventions, it is asked for the paper's."""
        self.target, self.gradients, self.strict = target, gradients, strict
        module, _, name = target.partition(":")
        if not module or not name:
            raise pytest.UsageError(f"--impl must be MODULE:OBJECT, such as {DEFAULT}, got {target!r}")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            self._impl = getattr(importlib.import_module(module), name)
        except (Exception, SystemExit) as error:  # whatever a module does when it is imported
            raise pytest.UsageError(f"--impl {target}: {type(error).__name__}: {error}") from error
        if not any(self.provides(method) for method in METHODS):
            raise pytest.UsageError(f"--impl {target} provides none of {', '.join(METHODS)}")
        name = getattr(self._impl, "name", target)
        self.name = name if isinstance(name, str) else target

    def provides(self, method: str) -> bool:
        return callable(getattr(self._impl, method, None))

    def __getattr__(self, method: str) -> Any:
        if method not in METHODS:
            raise AttributeError(method)
        if not self.provides(method):
            pytest.skip(f"{method} not provided")
        return getattr(self._impl, method)

    def fresh(self) -> Any:
        """The object of a module that is executed once more, and has seen no call."""
        module, _, name = self.target.partition(":")
        spec, known = importlib.util.find_spec(module), sys.modules[module]
        if spec is None or spec.loader is None:
            raise ImportError(module)
        try:
            sys.modules[module] = again = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(again)
        finally:
            sys.modules[module] = known
        return getattr(again, name)

    @cached_property
    def fault(self) -> str | None:
        """The first call that breaks the contract so that nothing else can be asked; None if there is none."""
        fault = next((fault for call in self._calls() if (fault := self._fault(*call))), None) or self._height()
        if fault and isinstance(self._impl, type):
            module, _, name = self.target.partition(":")
            return f"{self.target} is a class, not an object: write mine = {name}() and pass {module}:mine\n({fault})"
        return fault

    def _calls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every method with all its arguments, with its defaults, and with a v0 for each neuron; two neurons, three steps."""
        omega, leak = torch.full((3, 3), 0.25, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
        start = torch.tensor([0.25, 0.5], dtype=torch.float64)
        extra: dict[str, dict[str, Any]] = {
            "integrate_and_fire": {},
            "mht": {"levels": 2},
            "lmht": {"levels": 2, "omega": omega, "leak": leak},
        }
        for method, arguments in extra.items():
            if self.provides(method):
                yield method, {**arguments, "theta": 1.0, "v0": 0.25, "leak": arguments.get("leak", 0.5)}
                yield method, {**arguments, "theta": 1.0}
                yield method, {**arguments, "theta": 1.0, "v0": start}
        if self.provides("qcfs"):
            yield "qcfs", {"levels": 2, "scale": torch.tensor(1.0, dtype=torch.float64)}

    def _fault(self, method: str, arguments: dict[str, Any]) -> str | None:
        x = torch.tensor([[0.5, 1.5], [0.25, -1.0], [2.0, 0.75]], dtype=torch.float64)
        given = [
            f"{key}={f'tensor of shape {[*v.shape]}' if isinstance(v, Tensor) else v}" for key, v in arguments.items()
        ]
        call = f"{method}(x, {', '.join(given)})"
        try:  # the same shape, and other numbers between: the third would see what the second left behind
            answers = [self._answer(method, value, arguments) for value in (x, x + 1, x)]
        except (Exception, SystemExit) as error:
            return f"{call} raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        first, _, again = answers
        parts = 2 if method in ("integrate_and_fire", "mht") else 1
        if len(first) != parts or not all(isinstance(part, Tensor) for part in first):
            return f"{call} must return {'spikes and potentials, two tensors' if parts == 2 else 'one tensor'}"
        for part in first:
            if part.shape != x.shape:
                return f"{call} returns shape {[*part.shape]} for x of shape {[*x.shape]}"
        if not all(a.allclose(b, 0, 0, equal_nan=True) for a, b in zip(first, again, strict=True)):
            return f"{call} gives another answer when it is called again: state that is not reset, or randomness"
        return None

    def _height(self) -> str | None:
        """Whether lmht returns numbers of spikes, which at theta = 1 alone are what the contract asks for."""
        if not self.provides("lmht"):
            return None
        one = torch.ones(1, 1, dtype=torch.float64)
        arguments = {"levels": 3, "theta": 2.0, "omega": one, "leak": one[0, 0]}
        try:
            out = self._answer("lmht", torch.tensor([[2.5, 4.5, 6.5]], dtype=torch.float64), arguments)[0]
        except Exception:  # a test will show it
            return None
        if out.tolist() != [[1, 2, 3]]:
            return None
        return "lmht gives 1, 2 and 3 for as many spikes at theta = 2: multiply by theta, as the contract has it (Eqs. 7-9)"

    def _answer(self, method: str, x: Tensor, arguments: dict[str, Any]) -> tuple[Any, ...]:
        answer = getattr(self._impl, method)(x.clone(), **arguments)
        parts = answer if isinstance(answer, tuple | list) else (answer,)
        return tuple(part.detach().clone() if isinstance(part, Tensor) else part for part in parts)

    @cached_property
    def conventions(self) -> Conventions:
        """Recognised once, when first asked for."""
        return recognise(self)

    def rules(self, method: str) -> Rules:
        return PAPER if self.strict else self.conventions.rules.get(method, PAPER)

    def has(self, convention: str) -> bool:
        return not self.strict and convention in self.conventions.lines

    def follows(self, convention: str) -> None:
        """Skip a test that has nothing to say about a neuron of another convention."""
        if self.has(convention):
            pytest.skip(f"convention: {convention}")

    def follows_the_paper(self, why: str) -> None:
        """Skip a test that has nothing to say about a neuron that isn't, forward, the paper's."""
        if any(self.rules(method) != PAPER for method in self.conventions.rules if method != "qcfs"):
            pytest.skip(why)
