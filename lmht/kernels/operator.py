"""The operators ``lmht::fire`` and ``lmht::qcfs``: registration, and what their backends share (memory layout, constants).

    fire(x [T, ...], omega [T, T] or None, leak [] or [T, 1], v0 [] or of one step, levels, theta, chain, backend) -> s(t) * theta
    qcfs(x [...], scale (one number), levels, backend) -> a

Backends see ``x`` as ``[T, M]`` with dense rows, that of ``qcfs`` as one row. They write to the tensor given last: dense, in
that order. Only the inputs are saved for the backward pass,
which recomputes the potentials, or levels. :func:`call` calls one.
"""

import functools
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lmht.functional import compute_dtype, symbolic
from lmht.surrogate import once_differentiable


def backend_module(name: str) -> ModuleType:
    if name == "triton":
        from lmht.kernels import gpu

        return gpu
    from lmht.kernels import compiled

    return compiled


@functools.lru_cache(maxsize=256)
def constants(theta: float, levels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """theta, L, and the two ends of the surrogate window (Eq. 8), each rounded once, as the reference rounds them."""
    with torch.inference_mode(False):
        return torch.tensor([theta, levels, theta / 2, (levels + 0.5) * theta], dtype=dtype, device=device)


def strides(x: Tensor) -> tuple[int, ...]:
    """Of the output: time outermost, one step in the memory format of ``x``'s steps, dense."""
    if symbolic(x):
        return (math.prod(x.shape[1:]), *torch.empty_like(x[0], device="meta").stride())
    return _strides(x.shape, x.stride())


@functools.lru_cache(maxsize=256)
def _strides(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    step = torch.empty_strided(shape[1:], stride[1:], device="meta")
    return (math.prod(shape[1:]), *torch.empty_like(step).stride())


def rows(x: Tensor, layout: tuple[int, ...]) -> Tensor:
    """``x`` as ``[T, M]`` in the given memory order of a step: a view, or a copy where the steps of ``x`` aren't dense in it.

    Here and below ``resolve_neg``: the kernels read memory, which holds the opposite of what torch negates lazily.
    """
    x = x.resolve_neg()
    same = all(size == 1 or a == b for size, a, b in zip(x.shape[1:], x.stride()[1:], layout[1:], strict=True))
    if not same:
        x = x.new_empty_strided(x.shape, layout).copy_(x)
    return x.detach().as_strided((len(x), math.prod(x.shape[1:])), (x.stride(0), 1))


def prepared(
    x: Tensor, omega: Tensor | None, leak: Tensor, v0: Tensor, levels: int, theta: float
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """The arguments as the backends take them: matrices and vectors in the dtype that is computed in."""
    dtype, layout = compute_dtype(x), strides(x)
    v0 = dense(v0, dtype) if not v0.dim() else rows(v0.detach().to(dtype)[None], layout)[0]
    return rows(x, layout), *mixing(len(x), omega, leak, dtype), v0, constants(theta, levels, dtype, x.device)


def mixing(steps: int, omega: Tensor | None, leak: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    """Omega, and lambda as one value a step."""
    leak = dense(leak, dtype)
    return None if omega is None else dense(omega, dtype), leak.expand(steps, 1)[:, 0].contiguous()


def dense(one: Tensor, dtype: torch.dtype) -> Tensor:
    """Dense, and in a dtype: what the kernels read."""
    if one.dtype == dtype and one.is_contiguous() and not one.is_neg():
        return one.detach()
    return one.detach().to(dtype).resolve_neg().contiguous()


def _fire(
    x: Tensor, omega: Tensor | None, leak: Tensor, v0: Tensor, levels: int, theta: float, chain: bool, backend: str
) -> Tensor:
    if not x.numel():
        return _like(x)
    return backend_module(backend).fire(*prepared(x, omega, leak, v0, levels, theta), _like(x))


def _fire_backward(
    grad: Tensor,
    x: Tensor,
    omega: Tensor | None,
    leak: Tensor,
    v0: Tensor,
    levels: int,
    theta: float,
    chain: bool,
    backend: str,
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, domega, dleak; the last two empty without ``parameters`` (nobody asks for them), domega also without Omega."""
    if not x.numel():
        dx, domega, dleak = _gradients(x, omega, leak, parameters)
        return dx, domega.zero_(), dleak.zero_()
    layout = strides(x)
    dx, domega, dleak = backend_module(backend).fire_backward(
        rows(grad.to(x.dtype), layout),
        *prepared(x, omega, leak, v0, levels, theta),
        _like(x),
        chain=chain,
        parameters=parameters,
    )
    if not parameters:
        return dx, x.new_empty(0), x.new_empty(0)
    domega = x.new_empty(0) if omega is None else domega.to(omega.dtype)
    return dx, domega, (dleak.reshape(leak.shape) if leak.dim() else dleak.sum()).to(leak.dtype)


def _like(x: Tensor) -> Tensor:
    return x.new_empty_strided(x.shape, strides(x))


def _gradients(x: Tensor, omega: Tensor | None, leak: Tensor, parameters: bool) -> tuple[Tensor, Tensor, Tensor]:
    domega = torch.empty_like(omega) if parameters and omega is not None else x.new_empty(0)
    return _like(x), domega, torch.empty_like(leak) if parameters else x.new_empty(0)


fire = torch.library.custom_op("lmht::fire", _fire, mutates_args=())
fire_backward = torch.library.custom_op("lmht::fire_backward", _fire_backward, mutates_args=())


@fire.register_fake
def _(
    x: Tensor, omega: Tensor | None, leak: Tensor, v0: Tensor, levels: int, theta: float, chain: bool, backend: str
) -> Tensor:
    return _like(x)


@fire_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    omega: Tensor | None,
    leak: Tensor,
    v0: Tensor,
    levels: int,
    theta: float,
    chain: bool,
    backend: str,
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(x, omega, leak, parameters)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None = None) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.constants = inputs[4:]


def _backward(ctx: Any, grad: Tensor, gradients_of: Any = fire_backward) -> tuple[Tensor | None, ...]:
    x, omega, leak, v0 = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    gradients = gradients_of(grad, x, omega, leak, v0, *ctx.constants, wanted[1] or wanted[2])
    return *(g if want else None for g, want in zip(gradients, wanted, strict=False)), *(None,) * 5


fire.register_autograd(_backward, setup_context=_setup)


def _row(x: Tensor) -> Tensor:
    """``x`` as ``[M]``: a view where it is dense in any order of its axes."""
    return rows(x[None], strides(x[None]))[0]


def _qcfs(x: Tensor, scale: Tensor, levels: int, backend: str) -> Tensor:
    if not x.numel():
        return _alike(x)
    return backend_module(backend).qcfs(_row(x), number(scale, x), levels, _alike(x))


def _qcfs_backward(
    grad: Tensor, x: Tensor, scale: Tensor, levels: int, backend: str, parameters: bool
) -> tuple[Tensor, Tensor]:
    """dx, dscale; the latter empty without ``parameters`` (nobody asks for it)."""
    if not x.numel():
        return _alike(x), torch.zeros_like(scale) if parameters else x.new_empty(0)
    grad = rows(grad.to(x.dtype)[None], strides(x[None]))[0]
    dx, dscale = backend_module(backend).qcfs_backward(
        grad, _row(x), number(scale, x), levels, _alike(x), parameters=parameters
    )
    return dx, dscale.to(scale.dtype).reshape(scale.shape) if parameters else x.new_empty(0)


def number(scale: Tensor, x: Tensor) -> Tensor:
    return dense(scale, compute_dtype(x)).reshape(())


def _alike(x: Tensor) -> Tensor:
    return x.new_empty_strided(x.shape, strides(x[None])[1:])


qcfs = torch.library.custom_op("lmht::qcfs", _qcfs, mutates_args=())
qcfs_backward = torch.library.custom_op("lmht::qcfs_backward", _qcfs_backward, mutates_args=())


@qcfs.register_fake
def _(x: Tensor, scale: Tensor, levels: int, backend: str) -> Tensor:
    return _alike(x)


@qcfs_backward.register_fake
def _(grad: Tensor, x: Tensor, scale: Tensor, levels: int, backend: str, parameters: bool) -> tuple[Tensor, Tensor]:
    return _alike(x), torch.empty_like(scale) if parameters else x.new_empty(0)


def _setup_qcfs(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None = None) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.constants = inputs[2:]


def _backward_qcfs(ctx: Any, grad: Tensor, gradients_of: Any = qcfs_backward) -> tuple[Tensor | None, ...]:
    x, scale = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    gradients = gradients_of(grad, x, scale, *ctx.constants, wanted[1])
    return *(g if want else None for g, want in zip(gradients, wanted, strict=False)), None, None


qcfs.register_autograd(_backward_qcfs, setup_context=_setup_qcfs)


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _setup(ctx, inputs)
        return _fire(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, grad, _fire_backward)


class _Qcfs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _setup_qcfs(ctx, inputs)
        return _qcfs(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _backward_qcfs(ctx, grad, _qcfs_backward)


DIRECT: dict[Any, Any] = {fire: _Fire, qcfs: _Qcfs}


def plain(x: Tensor) -> bool:
    """Whether nobody but autograd looks on: a tensor of its values, without a tracer, a transform or a dispatch mode."""
    seen = type(x) not in (Tensor, nn.Parameter) or symbolic(x) or torch.jit.is_tracing() or x.is_neg()
    return not (seen or torch._C._len_torch_dispatch_stack())


def call(op: Any, x: Tensor, *rest: Any) -> Tensor:
    """The operator: on plain tensors without torch's way to a registered one, which costs more than a small layer."""
    return DIRECT[op].apply(x, *rest) if plain(x) else op(x, *rest)
