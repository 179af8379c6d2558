"""What ``pytest theorems/ --impl lmht.kernels.impl:compiled`` tests: the fused operator behind the suite's contract."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmht import functional, kernels


@dataclass(frozen=True)
class Fused:
    """One backend on its device, whatever size and device of the input; more than ``most`` steps run on ``eager``."""

    backend: str
    device: str
    most: int = kernels.MOST_STEPS

    @property
    def name(self) -> str:
        return f"lmht, {self.backend}"

    def _backend(self, x: Tensor) -> str:
        return self.backend if len(x) <= self.most else "eager"

    def _here(self, *values: float | Tensor) -> Iterator[Any]:
        return (value.to(self.device) if isinstance(value, Tensor) else value for value in values)

    def integrate_and_fire(
        self, current: Tensor, *, theta: float, leak: float = 1.0, v0: float | Tensor = 0.0
    ) -> tuple[Tensor, Tensor]:
        return self.mht(current, levels=1, theta=theta, leak=leak, v0=v0)

    def mht(
        self, current: Tensor, *, levels: int, theta: float, leak: float = 1.0, v0: float | Tensor = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Spikes as the operator emits them; potentials, which it never writes out, from the spikes."""
        (current, v0), origin = self._here(current, v0), current.device
        dtype = functional.compute_dtype(current)
        with kernels.use_backend(self._backend(current)):
            out = kernels.mht(current, levels=levels, theta=theta, leak=leak, v0=v0)
        spikes = out / theta
        spikes = spikes + (spikes.round() - spikes).detach()  # the quotient may be off by its last digit
        v, potentials = functional.initial_potential(current.to(dtype), v0), []
        for x, s in zip(current.to(dtype), spikes.to(dtype), strict=True):
            v = leak * v + x - s * theta
            potentials.append(v)
        return spikes.to(origin), torch.stack(potentials).to(origin, current.dtype)

    def lmht(
        self,
        x: Tensor,
        *,
        levels: int,
        theta: float,
        omega: Tensor,
        leak: float | Tensor,
        v0: float | Tensor = 0.0,
    ) -> Tensor:
        (x, omega, leak, v0), origin = self._here(x, omega, leak, v0), x.device
        with kernels.use_backend(self._backend(x)):
            return kernels.lmht(x, levels=levels, theta=theta, omega=omega, leak=leak, v0=v0).to(origin)

    def qcfs(self, x: Tensor, *, levels: int, scale: float | Tensor) -> Tensor:
        (x, scale), origin = self._here(x, scale), x.device
        with kernels.use_backend(self.backend):
            return kernels.qcfs(x, levels=levels, scale=scale).to(origin)


compiled = Fused("compiled", "cpu")
# the interpreter takes a second for 64 steps
triton = Fused("triton", "cpu", most=16) if os.environ.get("TRITON_INTERPRET") == "1" else Fused("triton", "cuda")
