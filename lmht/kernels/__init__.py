"""The fused operators: LM-HT in one pass over memory forward and one backward, whatever T, and QCFS likewise.

:func:`lmht`, :func:`mht` and :func:`qcfs` compute what their namesakes in :mod:`lmht.functional` do, on one of three backends:

- ``eager``: :mod:`lmht.functional` itself, the naive reference;
- ``compiled``: the fast CPU path, in C++ (:mod:`lmht.kernels.compiled`);
- ``triton``: the fast GPU path (:mod:`lmht.kernels.gpu`).

:func:`backend_for` says which one a tensor gets; the environment variable ``LMHT_BACKEND`` or :func:`use_backend` overrides it. The
fused backends don't look at the values of their input: a NaN comes out as NaN, where the eager backend raises.
"""

import functools
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from lmht import functional
from lmht.kernels import compiled, operator

__all__ = ["BACKENDS", "backend_for", "lmht", "mht", "qcfs", "use_backend"]

BACKENDS = ("eager", "compiled", "triton")
# A CPU kernel costs seconds once; below this many elements it would take thousands of calls to win them back.
WORTH_COMPILING = 1 << 15
MOST_STEPS = 64  # a program keeps T rows and T x T sums in registers or a cache
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

_P = ParamSpec("_P")
_R = TypeVar("_R")
_chosen: ContextVar[str | None] = ContextVar("lmht_backend", default=None)


def _constant(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``torch.compiler.assume_constant_result``, without its import of ``torch._dynamo``: that is a third of ``import lmht``."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within this context every neuron runs on the named backend, ``"auto"``: on the one that :func:`backend_for` chooses.

    Raises:
        ValueError: there is no such backend.
    """
    token = _chosen.set(_known(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def backend_for(x: Tensor) -> str:
    """The backend that ``x [T, ...]`` gets: the one asked for, else the fastest one for its device, dtype and size.

    CUDA: ``triton``. CPU: ``compiled`` from 32768 elements on, if there is a C++ compiler. Everything else, T > 64, and
    under ``torch.func``'s transforms (``grad``, ``vmap``, ``jvp``, ...): ``eager``.
    A network under ``torch.compile`` keeps the choice that held when it was compiled.

    Raises:
        ValueError: ``LMHT_BACKEND`` or the context asks for a backend that can't run here, or doesn't exist.
    """
    asked = _asked()
    if asked != "auto":
        if reason := _missing(asked, x):
            raise ValueError(f"backend {asked!r} can't run on this input: {reason}; leave the choice to 'auto'")
        return asked
    no_kernel = not (x.is_cuda or x.device.type == "cpu") or x.dtype not in DTYPES or not 1 <= _steps(x) <= MOST_STEPS
    if no_kernel or functional.transformed():
        return "eager"
    fused = "triton" if x.is_cuda else "compiled"
    if fused == "compiled" and not torch.compiler.is_compiling() and x.numel() < WORTH_COMPILING:
        return "eager"
    if reason := _missing(fused, x):
        _say(f"neurons on {x.device.type} run on the slow backend 'eager': {reason}")
        return "eager"
    return fused


def lmht(
    x: Tensor,
    *,
    levels: int,
    theta: float,
    omega: Tensor,
    leak: float | Tensor,
    v0: float | Tensor = 0.0,
) -> Tensor:
    """:func:`lmht.functional.lmht`, fused; same arguments, result, gradients and errors, except that NaN is passed on."""
    backend = backend_for(x)
    if backend == "eager":
        return functional.lmht(x, levels=levels, theta=theta, omega=omega, leak=leak, v0=v0)
    functional.check_arguments(x, levels=levels, theta=theta, v0=v0, omega=omega, leak=leak, values=False)
    return operator.call(operator.fire, x, omega, as_tensor(x, leak), as_tensor(x, v0), levels, theta, False, backend)


def mht(
    current: Tensor,
    *,
    levels: int,
    theta: float,
    leak: float = 1.0,
    v0: float | Tensor = 0.0,
    temporal_gradient: bool = True,
) -> Tensor:
    """``s(t) * theta`` of :func:`lmht.functional.mht`, fused; same arguments, gradients and errors, except that NaN is passed on.

    The gradient with respect to a tensor ``v0`` exists on the eager backend only, which is taken if ``v0`` asks for it.
    """
    backend = backend_for(current)
    if backend == "eager" or (isinstance(v0, Tensor) and v0.requires_grad):
        spikes, _ = functional.mht(
            current, levels=levels, theta=theta, leak=leak, v0=v0, temporal_gradient=temporal_gradient
        )
        return spikes * theta
    functional.check_arguments(current, levels=levels, theta=theta, v0=v0, leak=leak, values=False)
    leaks, start = as_tensor(current, leak), as_tensor(current, v0)
    return operator.call(operator.fire, current, None, leaks, start, levels, theta, temporal_gradient, backend)


def qcfs(x: Tensor, *, levels: int, scale: float | Tensor) -> Tensor:
    """:func:`lmht.functional.qcfs`, fused; same arguments, result, gradients and errors, except that NaN is passed on.

    On a GPU the scale isn't looked at either: one that isn't finite and > 0 makes the whole output NaN.
    """
    backend = backend_for(x[None])  # one step
    if backend == "eager":
        return functional.qcfs(x, levels=levels, scale=scale)
    functional.check_floating(x, values=False)
    return operator.call(
        operator.qcfs, x, functional.checked_scale(x, levels, scale, value=not x.is_cuda), levels, backend
    )


@_constant
def _asked() -> str:
    return _chosen.get() or _known(os.environ.get("LMHT_BACKEND", "auto"))


def as_tensor(x: Tensor, value: float | Tensor) -> Tensor:
    """A parameter on the device of ``x``; a number in the dtype that ``x`` is computed in."""
    return value.to(x.device) if isinstance(value, Tensor) else x.new_full((), value, dtype=functional.compute_dtype(x))


def _steps(x: Tensor) -> int:
    return x.shape[0] if x.dim() else 0


def _known(name: str) -> str:
    if name not in (*BACKENDS, "auto"):
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)} or auto, got {name!r}")
    return name


def _missing(backend: str, x: Tensor) -> str | None:
    """Why the backend can't run on this input, or None."""
    if backend == "eager":
        return None
    if functional.transformed():
        return "it has no rules for torch.func's transforms and forward-mode differentiation"
    if x.dtype not in DTYPES:
        return f"it has no {x.dtype}"
    if not 1 <= _steps(x) <= MOST_STEPS:
        return f"T = {_steps(x)} is not in 1..{MOST_STEPS}"
    if backend == "compiled" and x.device.type != "cpu":
        return f"it is for the CPU, the input is on {x.device}"
    if backend == "triton" and not x.is_cuda and not _installed("interpreter"):
        return f"it is for CUDA, the input is on {x.device}"
    if not _installed(backend):
        return (
            "it needs a C++ compiler (set CXX, or install g++; torch 2.6 also needs setuptools)"
            if backend == "compiled"
            else "it needs triton and gcc"
        )
    return None


@_constant
def _installed(what: str) -> bool:
    return _look(what)


@functools.cache
def _look(what: str) -> bool:
    if what == "interpreter":
        return os.environ.get("TRITON_INTERPRET") == "1"
    if what == "compiled":
        return compiled.available()
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")  # builds Triton's launcher on a GPU
    return importlib.util.find_spec("triton") is not None and (_look("interpreter") or compiler is not None)


@_constant
def _say(message: str) -> None:
    _say_once(message)


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)
