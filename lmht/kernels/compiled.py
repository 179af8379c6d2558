"""The fast CPU path: ``fire.cpp`` and ``qcfs.cpp``, compiled for one T and one dtype when first needed, in about two seconds.

Inductor's C++ tool chain compiles it: it finds the compiler and the OpenMP runtime that torch itself uses, tunes for this
processor, and keeps the library in its cache on disk. The loops are written by hand: those that Inductor generates from the
equations leave the T + T^2 sums for lambda and Omega out of the fusion from T = 3 on, and take up to a minute to compile at T = 16.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCES = Path(__file__).parent
STRICT = {
    "cpp.enable_floating_point_contract_flag": "off",
    "cpp.enable_unsafe_math_opt_flag": False,
}  # ties depend on it
NAMES = {torch.float64: "double", torch.float32: "float", torch.bfloat16: "c10::BFloat16", torch.float16: "c10::Half"}


def available() -> bool:
    """Whether Inductor finds a C++ compiler: ``CXX``, or else the platform's."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except RuntimeError:
        return False


def build(name: str, dtype: torch.dtype, **constants: int) -> ctypes.CDLL:
    """A source file for a dtype and its other compile-time constants.

    Raises:
        RuntimeError: the compiler fails.
    """
    from torch._inductor import config  # imported late: it takes a second
    from torch._inductor.codecache import CppCodeCache

    wide = "double" if dtype == torch.float64 else "float"
    defines = {"SCALAR": NAMES[dtype], "WIDE": wide, **constants}
    text = [f"#define {key} {value}\n" for key, value in defines.items()]
    text += [(SOURCES / file).read_text() for file in ("vectors.h", name)]
    try:
        with config.patch(STRICT):
            return CppCodeCache.load("".join(text))
    except RuntimeError as error:
        why = next((line for line in str(error).splitlines() if "error:" in line), str(error))
        raise RuntimeError(f"the C++ compiler fails on {name}: {why}; mend it, or set LMHT_BACKEND=eager") from error


POINTER, INTEGER, FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool


@functools.cache
def library(steps: int, dtype: torch.dtype) -> ctypes.CDLL:
    """``fire.cpp`` for ``steps`` time-steps of ``dtype``; 64 stands for any number from 17 on."""
    # four vectors in turn hide how long a sum over T takes; halves are two already
    long = steps > 16 and dtype.itemsize >= 4
    loaded = build("fire.cpp", dtype, STEPS=steps, REGISTERS=4 if long else 1)
    neuron: list[Any] = [POINTER, POINTER, POINTER, FLAG, POINTER, ctypes.c_int]
    loaded.forward.argtypes = [ctypes.c_int, POINTER, INTEGER, INTEGER, *neuron, POINTER]
    gradients: list[Any] = [FLAG, POINTER, POINTER, POINTER]
    loaded.backward.argtypes = [ctypes.c_int, POINTER, INTEGER, POINTER, INTEGER, INTEGER, *neuron, *gradients]
    loaded.forward.restype = loaded.backward.restype = None
    return loaded


def library_for(steps: int, dtype: torch.dtype) -> ctypes.CDLL:
    return library(steps if steps <= 16 else 64, dtype)


@functools.cache
def qcfs_library(dtype: torch.dtype) -> ctypes.CDLL:
    """``qcfs.cpp`` for ``dtype``."""
    loaded = build("qcfs.cpp", dtype, REGISTERS=1)
    wide = ctypes.c_double if dtype == torch.float64 else ctypes.c_float
    activation: list[Any] = [wide, POINTER, ctypes.c_int]
    loaded.forward.argtypes = [POINTER, INTEGER, *activation, POINTER]
    loaded.backward.argtypes = [POINTER, POINTER, INTEGER, *activation, POINTER, POINTER]
    loaded.forward.restype = loaded.backward.restype = None
    return loaded


def neuron(
    omega: Tensor | None, leak: Tensor, v0: Tensor, constants: Tensor
) -> tuple[int | None, int, int, bool, int, int]:
    """What both functions take of a neuron, and the number of threads."""
    mixing = None if omega is None else omega.data_ptr()
    return mixing, leak.data_ptr(), v0.data_ptr(), v0.dim() > 0, constants.data_ptr(), torch.get_num_threads()


def fire(x: Tensor, omega: Tensor | None, leak: Tensor, v0: Tensor, constants: Tensor, out: Tensor) -> Tensor:
    """``s(t) * theta`` as ``[T, M]``, for ``x [T, M]`` with dense rows; see :mod:`lmht.kernels.operator` for the rest."""
    steps, size = x.shape
    forward = library_for(steps, x.dtype).forward
    forward(steps, x.data_ptr(), x.stride(0), size, *neuron(omega, leak, v0, constants), out.data_ptr())
    return out


def fire_backward(
    grad: Tensor,
    x: Tensor,
    omega: Tensor | None,
    leak: Tensor,
    v0: Tensor,
    constants: Tensor,
    dx: Tensor,
    *,
    chain: bool,
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx [T, M]``, ``domega [T, T]``, ``dleak [T]``; the last two unset without ``parameters``, domega zero without Omega."""
    steps, size = x.shape
    domega, dleak = leak.new_empty(steps, steps), leak.new_empty(steps)
    library_for(steps, x.dtype).backward(
        steps,
        grad.data_ptr(),
        grad.stride(0),
        x.data_ptr(),
        x.stride(0),
        size,
        *neuron(omega, leak, v0, constants),
        chain,
        dx.data_ptr(),
        *((dleak.data_ptr(), domega.data_ptr()) if parameters else (None, None)),
    )
    return dx, domega, dleak


def qcfs(x: Tensor, scale: Tensor, levels: int, out: Tensor) -> Tensor:
    """The activation of dense ``x [M]``; scale ``[]`` in the dtype that is computed in."""
    forward = qcfs_library(x.dtype).forward
    forward(x.data_ptr(), x.numel(), levels, scale.data_ptr(), torch.get_num_threads(), out.data_ptr())
    return out


def qcfs_backward(
    grad: Tensor, x: Tensor, scale: Tensor, levels: int, dx: Tensor, *, parameters: bool
) -> tuple[Tensor, Tensor]:
    """``dx [M]`` and ``dscale []``, the latter unset without ``parameters``."""
    dscale = torch.empty_like(scale)
    qcfs_library(x.dtype).backward(
        grad.data_ptr(),
        x.data_ptr(),
        x.numel(),
        levels,
        scale.data_ptr(),
        torch.get_num_threads(),
        dx.data_ptr(),
        dscale.data_ptr() if parameters else None,
    )
    return dx, dscale
