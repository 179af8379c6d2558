"""What the suite tests: the contract, our own eager implementation of it, and how ``--impl`` finds another one."""

import importlib
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

    def __init__(self, target: str) -> None:
        module, _, name = target.partition(":")
        if not module or not name:
            raise pytest.UsageError(f"--impl must be MODULE:OBJECT, such as {DEFAULT}, got {target!r}")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            self.target, self._impl = target, getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise pytest.UsageError(f"--impl {target}: {error}") from error
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

    @cached_property
    def fault(self) -> str | None:
        """The first call that breaks the contract so that nothing else can be asked; None if there is none."""
        fault = next(self._faults(), None)
        if fault and isinstance(self._impl, type):
            module, _, name = self.target.partition(":")
            return f"{self.target} is a class, not an object: write mine = {name}() and pass {module}:mine ({fault})"
        return fault

    def _faults(self) -> Iterator[str]:
        x = torch.tensor([[0.5, 1.5], [0.25, -1.0], [2.0, 0.75]], dtype=torch.float64)
        omega, leak = torch.full((3, 3), 0.25, dtype=x.dtype), torch.tensor(0.5, dtype=x.dtype)
        neuron, start = {"theta": 1.0, "v0": 0.25}, torch.tensor([0.25, 0.5], dtype=x.dtype)
        calls: list[tuple[str, dict[str, Any]]] = [
            ("integrate_and_fire", {**neuron, "leak": 0.5}),
            ("integrate_and_fire", {"theta": 1.0}),
            ("integrate_and_fire", {"theta": 1.0, "v0": start}),
            ("mht", {**neuron, "levels": 2, "leak": 0.5}),
            ("mht", {"levels": 2, "theta": 1.0}),
            ("mht", {"levels": 2, "theta": 1.0, "v0": start}),
            ("lmht", {**neuron, "levels": 2, "omega": omega, "leak": leak}),
            ("lmht", {"levels": 2, "theta": 1.0, "omega": omega, "leak": leak}),
            ("lmht", {"levels": 2, "theta": 1.0, "omega": omega, "leak": leak, "v0": start}),
            ("qcfs", {"levels": 2, "scale": torch.tensor(1.0, dtype=x.dtype)}),
        ]
        for method, arguments in calls:
            if not self.provides(method):
                continue
            shown = ", ".join(f"{key}={'tensor' if isinstance(v, Tensor) else v}" for key, v in arguments.items())
            call = f"{method}(x, {shown})"
            try:
                first = self._answer(method, x, arguments)
                again = self._answer(method, x, arguments)
                other = self._answer(method, x + 1, arguments)
                after = self._answer(method, x, arguments)
            except Exception as error:
                yield f"{call} raises {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                continue
            parts = 2 if method in ("integrate_and_fire", "mht") else 1
            if not isinstance(other, tuple) or len(first) != parts or not all(isinstance(part, Tensor) for part in first):
                yield f"{call} must return {'spikes and potentials, two tensors' if parts == 2 else 'one tensor'}"
            elif bad := [part for part in first if part.shape != x.shape]:
                yield f"{call} returns shape {tuple(bad[0].shape)} for x of shape {tuple(x.shape)}"
            elif not all(a.allclose(b, 0, 0, equal_nan=True) for late in (again, after) for a, b in zip(first, late, strict=True)):
                yield f"{call} gives another answer when it is called again: state that is not reset, or randomness"

    def _answer(self, method: str, x: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
        answer = getattr(self._impl, method)(x.clone(), **arguments)
        return tuple(
            part.detach().clone() if isinstance(part, Tensor) else part
            for part in (answer if isinstance(answer, tuple | list) else (answer,))
        )

    @cached_property
    def conventions(self) -> Conventions:
        """Recognised once, when first asked for."""
        return recognise(self)

    def rules(self, method: str) -> Rules:
        return self.conventions.rules.get(method, PAPER)

    def follows(self, *names: str) -> None:
        """Skip a test that has nothing to say about a neuron of one of these conventions."""
        for name in names:
            if name in self.conventions.lines:
                pytest.skip(f"convention: {name}")
