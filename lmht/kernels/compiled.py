"""The fast CPU path: ``fire.cpp``, ``qcfs.cpp`` and ``norm.cpp``, compiled for one T and dtype when first needed, in
seconds (T = 16 in half precision on AVX2: half a minute).

Inductor's C++ tool chain compiles it: it finds the compiler and the OpenMP runtime that torch itself uses, tunes for this
processor, and keeps the library in its cache on disk. The loops are written by hand: those that Inductor generates from the
equations leave the T + T^2 sums for lambda and Omega out of the fusion from T = 3 on, and take up to a minute to compile at T = 16.
"""

import ctypes
import functools
import importlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

SOURCES = Path(__file__).parent
STRICT = {
    "cpp.enable_floating_point_contract_flag": "off",
    "cpp.enable_unsafe_math_opt_flag": False,
}  # ties depend on it
NAMES = {torch.float64: "double", torch.float32: "float", torch.bfloat16: "c10::BFloat16", torch.float16: "c10::Half"}


def available() -> bool:
    """Whether Inductor finds a C++ compiler: ``CXX``, or else the platform's; and torch 2.6 setuptools."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        importlib.import_module("torch.utils.cpp_extension")  # by Inductor, when it compiles
        return bool(get_cpp_compiler())
    except (ImportError, RuntimeError):
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
CHANNELS: list[Any] = [POINTER, INTEGER, POINTER]  # of vectors.h
WIDEST = 64  # every kernel's number of elements taken at once divides it


@functools.cache
def library(steps: int, dtype: torch.dtype) -> ctypes.CDLL:
    """``fire.cpp`` for ``steps`` time-steps of ``dtype``; 64 stands for any number from 17 on."""
    # four vectors in turn hide how long a sum over T takes; halves are two already
    long = steps > 16 and dtype.itemsize >= 4
    loaded = build("fire.cpp", dtype, STEPS=steps, REGISTERS=4 if long else 1)
    neuron: list[Any] = [POINTER, POINTER, POINTER, FLAG, POINTER, ctypes.c_int]
    loaded.forward.argtypes = [ctypes.c_int, POINTER, INTEGER, INTEGER, *neuron, *CHANNELS, POINTER]
    gradients: list[Any] = [FLAG, *CHANNELS, POINTER, POINTER, POINTER, POINTER]
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
    activation: list[Any] = [wide, POINTER, ctypes.c_int, *CHANNELS]
    loaded.forward.argtypes = [POINTER, INTEGER, *activation, POINTER]
    loaded.backward.argtypes = [POINTER, POINTER, INTEGER, *activation, POINTER, POINTER, POINTER]
    loaded.forward.restype = loaded.backward.restype = None
    return loaded


@functools.cache
def norm_library(dtype: torch.dtype) -> ctypes.CDLL:
    """``norm.cpp`` for ``dtype``."""
    loaded = build("norm.cpp", dtype, REGISTERS=1)
    wide = ctypes.c_double if dtype == torch.float64 else ctypes.c_float
    loaded.rows.argtypes = [POINTER, POINTER, POINTER, POINTER, wide, INTEGER, INTEGER, POINTER, POINTER]
    gradients: list[Any] = [ctypes.c_double, ctypes.c_int, POINTER, POINTER, POINTER]
    loaded.backward.argtypes = [POINTER, POINTER, INTEGER, POINTER, POINTER, POINTER, INTEGER, INTEGER, *gradients]
    loaded.rows.restype = loaded.backward.restype = None
    return loaded


class Normalization(NamedTuple):
    """What stands between ``x`` and the activation: the current is ``scale[c] * x + shift[c] + residual``, channels innermost.

    Attributes:
        rows: scale, shift and mean as ``[3, period]``, each C values repeated up to a multiple of C and :data:`WIDEST`.
        residual: laid out as ``x``, or None.
    """

    rows: Tensor
    residual: Tensor | None


def channels(norm: Normalization | None) -> tuple[int | None, int, int | None]:
    if norm is None:
        return None, 0, None
    return norm.rows.data_ptr(), norm.rows.shape[1], None if norm.residual is None else norm.residual.data_ptr()


def neuron(
    omega: Tensor | None, leak: Tensor, v0: Tensor, constants: Tensor
) -> tuple[int | None, int, int, bool, int, int]:
    """What both functions take of a neuron, and the number of threads."""
    mixing = None if omega is None else omega.data_ptr()
    return mixing, leak.data_ptr(), v0.data_ptr(), v0.dim() > 0, constants.data_ptr(), torch.get_num_threads()


def fire(
    x: Tensor,
    omega: Tensor | None,
    leak: Tensor,
    v0: Tensor,
    constants: Tensor,
    out: Tensor,
    norm: Normalization | None = None,
) -> Tensor:
    """``s(t) * theta`` as ``[T, M]``, for ``x [T, M]`` with dense rows; see :mod:`lmht.kernels.operator` for the rest."""
    steps, size = x.shape
    parameters = neuron(omega, leak, v0, constants)
    forward = library_for(steps, x.dtype).forward
    forward(steps, x.data_ptr(), x.stride(0), size, *parameters, *channels(norm), out.data_ptr())
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
    norm: Normalization | None = None,
    sums: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx [T, M]``, ``domega [T, T]``, ``dleak [T]``; the last two unset without ``parameters``, domega zero without Omega.

    With a normalisation dx is the gradient after it, and ``sums [2, period]`` gets its sums and those of it times (x - mean).
    """
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
        *channels(norm),
        dx.data_ptr(),
        *((dleak.data_ptr(), domega.data_ptr()) if parameters else (None, None)),
        None if sums is None else sums.data_ptr(),
    )
    return dx, domega, dleak


def qcfs(x: Tensor, scale: Tensor, levels: int, out: Tensor, norm: Normalization | None = None) -> Tensor:
    """The activation of dense ``x [M]``; scale ``[]`` in the dtype that is computed in."""
    forward = qcfs_library(x.dtype).forward
    arguments = scale.data_ptr(), torch.get_num_threads(), *channels(norm)
    forward(x.data_ptr(), x.numel(), levels, *arguments, out.data_ptr())
    return out


def qcfs_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    levels: int,
    dx: Tensor,
    *,
    parameters: bool,
    norm: Normalization | None = None,
    sums: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``dx [M]`` and ``dscale []``, the latter unset without ``parameters``; normalisation as in :func:`fire_backward`."""
    dscale = torch.empty_like(scale)
    qcfs_library(x.dtype).backward(
        grad.data_ptr(),
        x.data_ptr(),
        x.numel(),
        levels,
        scale.data_ptr(),
        torch.get_num_threads(),
        *channels(norm),
        dx.data_ptr(),
        dscale.data_ptr() if parameters else None,
        None if sums is None else sums.data_ptr(),
    )
    return dx, dscale


def norm_rows(
    dtype: torch.dtype, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """:attr:`Normalization.rows` for data of ``dtype``, and ``1 / sqrt(variance + eps)``; all of them ``[C]``, and dense."""
    length = len(mean)
    period = math.lcm(length, WIDEST)
    rows, inverse = mean.new_empty(3, period), torch.empty_like(mean)
    learned = (None if one is None else one.data_ptr() for one in (weight, bias))
    given = mean.data_ptr(), variance.data_ptr(), eps, length, period
    norm_library(dtype).rows(*learned, *given, rows.data_ptr(), inverse.data_ptr())
    return rows, inverse


def norm_backward(
    dy: Tensor, x: Tensor, rows: Tensor, inverse: Tensor, sums: Tensor, count: float, dx: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the normalisation's weight and bias, ``[C]``, and of ``x`` to ``dx``, which may be ``dy``.

    Args:
        dy, sums: from the activation's backward pass.
        count: of elements of a channel; infinite if the statistics are given.
    """
    dweight, dbias = torch.empty_like(inverse), torch.empty_like(inverse)
    constants = inverse.data_ptr(), sums.data_ptr(), len(inverse), rows.shape[1], count, torch.get_num_threads()
    gradients = None if dx is None else dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr()
    norm_library(x.dtype).backward(dy.data_ptr(), x.data_ptr(), x.numel(), rows.data_ptr(), *constants, *gradients)
    return dweight, dbias
