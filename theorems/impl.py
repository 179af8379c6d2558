"""What the suite tests: the contract, our own eager implementation of it, and how ``--impl`` finds another one."""

import importlib
import os
import sys
from typing import Any, Protocol

import pytest
from torch import Tensor

from lmht import functional

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
        self.name = str(getattr(self._impl, "name", target))

    def provides(self, method: str) -> bool:
        return callable(getattr(self._impl, method, None))

    def __getattr__(self, method: str) -> Any:
        if method not in METHODS:
            raise AttributeError(method)
        if not self.provides(method):
            pytest.skip(f"{method} not provided")
        return getattr(self._impl, method)
