"""The fast CPU path: ``fire.cpp``, compiled for one T and one dtype when first needed, in about two seconds.

Inductor's C++ tool chain compiles it: it finds the compiler and the OpenMP runtime that torch itself uses, tunes for this
processor, and keeps the library in its cache on disk. The loops are written by hand: those that Inductor generates from the
equations leave the T + T^2 sums for lambda and Omega out of the fusion from T = 3 on, and take up to a minute to compile at T = 16.
"""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("fire.cpp")
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


@functools.cache
def library(steps: int, dtype: torch.dtype) -> ctypes.CDLL:
    """``fire.cpp`` for ``steps`` time-steps of ``dtype``.

    Raises:
        RuntimeError: the compiler fails.
    """
    from torch._inductor import config  # imported late: it takes a second
    from torch._inductor.codecache import CppCodeCache

    wide = "double" if dtype == torch.float64 else "float"
    defines = f"#define STEPS {steps}\n#define SCALAR {NAMES[dtype]}\n#define WIDE {wide}\n"
    try:
        with config.patch(STRICT):
            loaded = CppCodeCache.load(defines + SOURCE.read_text())
    except RuntimeError as error:
        why = next((line for line in str(error).splitlines() if "error:" in line), str(error))
        raise RuntimeError(
            f"the C++ compiler fails on {SOURCE.name}: {why}; mend it, or set LMHT_BACKEND=eager"
        ) from error
    pointer, integer, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool
    neuron = [pointer, pointer, pointer, flag, pointer, ctypes.c_int]
    loaded.forward.argtypes = [pointer, integer, integer, *neuron, pointer]
    loaded.backward.argtypes = [pointer, integer, pointer, integer, integer, *neuron, flag, pointer, pointer, pointer]
    loaded.forward.restype = loaded.backward.restype = None
    return loaded


def neuron(
    omega: Tensor | None, leak: Tensor, v0: Tensor, constants: Tensor
) -> tuple[int | None, int, int, bool, int, int]:
    """What both functions take of a neuron, and the number of threads."""
    mixing = None if omega is None else omega.data_ptr()
    return mixing, leak.data_ptr(), v0.data_ptr(), v0.dim() > 0, constants.data_ptr(), torch.get_num_threads()


def fire(x: Tensor, omega: Tensor | None, leak: Tensor, v0: Tensor, constants: Tensor) -> Tensor:
    """``s(t) * theta`` as ``[T, M]``, for ``x [T, M]`` with dense rows; see :mod:`lmht.kernels.operator` for the rest."""
    steps, size = x.shape
    out = x.new_empty(steps, size)
    forward = library(steps, x.dtype).forward
    forward(x.data_ptr(), x.stride(0), size, *neuron(omega, leak, v0, constants), out.data_ptr())
    return out


def fire_backward(
    grad: Tensor,
    x: Tensor,
    omega: Tensor | None,
    leak: Tensor,
    v0: Tensor,
    constants: Tensor,
    *,
    chain: bool,
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx [T, M]``, ``domega [T, T]``, ``dleak [T]``; the last two unset without ``parameters``, domega zero without Omega."""
    steps, size = x.shape
    dx, domega, dleak = x.new_empty(steps, size), leak.new_empty(steps, steps), leak.new_empty(steps)
    library(steps, x.dtype).backward(
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
