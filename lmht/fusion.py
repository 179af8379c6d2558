"""Batch normalisation, residual sum and activation in one pass over memory, where a network has one after the other.

    out = activation(norm(x) + residual)

Apart, a training step reads or writes every element fourteen times, a residual aside; together ten times, and only ``x`` and the
residual are kept for the backward pass. Statistics are torch's own, running ones too (so their last bit depends on the number of
threads, as apart), and the modules, their names and their state dict stay as they are. Sums are taken in another order, so that
results agree to rounding. :func:`normalized` runs the modules themselves wherever it is not sure to do the same.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmht import functional, kernels
from lmht.functional import compute_dtype
from lmht.kernels import compiled, operator
from lmht.neurons import IF, LIF, LMHT, MHT, QCFS
from lmht.surrogate import once_differentiable

NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d)
NEURONS = (LMHT, MHT, LIF, IF)
# Hooks of all modules at once. (torch 2.6 has no function that asks for them.)
_GLOBAL_HOOKS = (
    nn.modules.module._global_forward_pre_hooks,
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_backward_pre_hooks,
    nn.modules.module._global_backward_hooks,
)


def normalized(norm: nn.Module, activation: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """``activation(norm(x) + residual)``.

    Fused for torch's BatchNorm and the activations of :mod:`lmht.neurons` on the ``compiled`` backend, if the channels of ``x`` lie
    innermost (``channels_last``, or ``[N, C]``); not under hooks, tracing, ``torch.compile`` or functional transforms, which see
    the modules.

    Args:
        x: what the normalisation takes.
        residual: added to the normalised; of the same shape.

    Raises:
        ValueError: what the modules raise, but that NaN is passed on, as by every fused operator.
    """
    if fits(norm, activation, x, residual):
        return _Pair.run(norm, activation, x, residual)
    y = norm(x)
    return activation(y if residual is None else y + residual)


def chain(modules: Iterable[nn.Module], x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Modules one after the other; a BatchNorm, also one that ends a ``Sequential``, and the module after it as :func:`normalized`.

    Args:
        residual: added before the last module, an activation.
    """
    left = deque(module for module in modules if not _empty(module))
    if not left:
        return x if residual is None else x + residual
    while left:
        module = left.popleft()
        if type(module) is nn.Sequential and (left or residual is not None) and not _watched(module):
            left.extendleft(reversed(module))  # so that what it ends with meets what comes after it
            continue
        if left and (type(module) in NORMALIZATIONS or (residual is not None and len(left) == 1)):
            x = normalized(module, left.popleft(), x, None if left else residual)
        else:
            x = module(x if left or residual is None else x + residual)
    return x


class Sequential(nn.Sequential):
    """``nn.Sequential`` that runs its modules by :func:`chain`."""

    def forward(self, input: Tensor) -> Tensor:
        return chain(self, input)


def fits(norm: nn.Module, activation: nn.Module, x: Tensor, residual: Tensor | None) -> bool:
    """Whether the two can be fused on this input with the result that they have apart."""
    if type(norm) not in NORMALIZATIONS or type(activation) not in (*NEURONS, QCFS) or not operator.plain(x):
        return False
    if any(_GLOBAL_HOOKS) or _watched(norm) or _watched(activation):
        return False
    alike = residual is None or (
        operator.plain(residual)
        and (residual.dtype, residual.device, residual.shape) == (x.dtype, x.device, x.shape)
        and _innermost(residual)
    )
    if not alike or x.dim() != (2 if type(norm) is nn.BatchNorm1d else 4) or not _innermost(x) or not x.numel():
        return False
    if x.shape[1] != norm.num_features or (_own_statistics(norm) and x.numel() == x.shape[1]):
        return False  # errors, which the modules raise
    learned: tuple[Any, ...] = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if not all(one is None or _readable(one, x) for one in learned):
        return False
    if norm.running_mean is None and x.dtype != compute_dtype(x):
        return False  # torch takes the statistics of halves in halves then
    if not all(isinstance(getattr(activation, name, 0), int | float) for name in ("theta", "leak", "v0")):
        return False  # what somebody made learnable
    steps: int = getattr(activation, "steps", 1)  # QCFS has no time
    if x.shape[0] % steps or not getattr(activation, "folded", True):
        return False
    return kernels.backend_for(_unfolded(x, steps)) == "compiled"


def _readable(one: Tensor, x: Tensor) -> bool:
    """Whether the kernels read a normalisation's ``[C]`` right from memory."""
    alike = (one.dtype, one.device, *one.shape) == (compute_dtype(x), x.device, x.shape[1])
    return alike and type(one) in (Tensor, nn.Parameter) and one.is_contiguous() and not one.is_neg()


def _unfolded(x: Tensor, steps: int) -> Tensor:
    return x.view(steps, -1, *x.shape[1:])


def _innermost(x: Tensor) -> bool:
    return x.movedim(1, -1).is_contiguous()


def _empty(module: nn.Module) -> bool:
    return type(module) is nn.Sequential and all(map(_empty, module)) and not _watched(module)


def _watched(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class's forward."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    replaced = {"forward", "emit"} & vars(module).keys()
    return bool(hooks) or module._compiled_call_impl is not None or bool(replaced)


def _own_statistics(norm: nn.Module) -> bool:
    """Whether the batch's own mean and variance normalise, as :meth:`torch.nn.BatchNorm2d.forward` decides."""
    return norm.training or (norm.running_mean is None and norm.running_var is None)


@torch.no_grad()
def statistics(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, as the normalisation takes them; renews its running ones as in its forward."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    if not _own_statistics(norm):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return norm.running_mean, norm.running_var
    momentum = norm.momentum or 0.0
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # cumulative average
            momentum = 1.0 / float(norm.num_batches_tracked)
    kept = (norm.running_mean, norm.running_var) if norm.track_running_stats else (None, None)
    return torch.ops.aten.batch_norm_update_stats(x, *kept, momentum)


@dataclass(frozen=True)
class _Pair:
    """What is not a tensor: the activation's constants (``steps`` 0: QCFS), and whether the statistics are the batch's own."""

    steps: int
    levels: int
    theta: float
    v0: float
    chain: bool
    eps: float
    own: bool

    @staticmethod
    def run(norm: Any, activation: Any, x: Tensor, residual: Tensor | None) -> Tensor:
        own, eps = _own_statistics(norm), norm.eps
        omega: Tensor | None
        leak: Tensor
        if isinstance(activation, QCFS):
            pair = _Pair(0, activation.levels, 0.0, 0.0, False, eps, own)
            omega, leak = None, functional.checked_scale(x, activation.levels, activation.scale)
        else:
            chain = not isinstance(activation, LMHT) and activation.temporal_gradient
            pair = _Pair(activation.steps, activation.levels, activation.theta, activation.v0, chain, eps, own)
            omega, own_leak = activation.tgim() if isinstance(activation, LMHT) else (None, activation.leak)
            leak = kernels.as_tensor(x, own_leak)
            arguments: dict[str, Any] = {
                "levels": pair.levels,
                "theta": pair.theta,
                "v0": pair.v0,
                "omega": omega,
                "leak": leak,
            }
            functional.check_arguments(_unfolded(x, pair.steps), **arguments, values=False)
        return _Normalized.apply(x, residual, norm.weight, norm.bias, omega, leak, *statistics(norm, x), pair)

    def arguments(self, x: Tensor, omega: Tensor | None, leak: Tensor) -> tuple[Any, ...]:
        """What the activation's kernels take, ``x`` first."""
        dtype, rows = compute_dtype(x), _rows(x, self.steps)
        if not self.steps:
            return rows, operator.number(leak, x), self.levels
        constants = operator.constants(self.theta, self.levels, dtype, x.device)
        return rows, *operator.mixing(self.steps, omega, leak, dtype), x.new_full((), self.v0, dtype=dtype), constants


class _Normalized(torch.autograd.Function):
    """``leak`` is QCFS's scale where ``pair.steps`` is 0."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        omega: Tensor | None,
        leak: Tensor,
        mean: Tensor,
        variance: Tensor,
        pair: _Pair,
    ) -> Tensor:
        rows, inverse = compiled.norm_rows(x.dtype, weight, bias, mean, variance, pair.eps)
        out, norm = torch.empty_like(x), compiled.Normalization(rows, residual)
        kernel: Any = compiled.fire if pair.steps else compiled.qcfs
        kernel(*pair.arguments(x, omega, leak), out, norm)
        # weight and bias for their second derivatives alone, which are refused
        ctx.save_for_backward(x, residual, omega, leak, rows, inverse, weight, bias)
        ctx.pair = pair
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, residual, omega, leak, rows, inverse, *_ = ctx.saved_tensors
        pair, wanted = ctx.pair, ctx.needs_input_grad
        grad = grad.to(x.dtype).resolve_neg()
        grad = grad.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)
        dy, sums = torch.empty_like(x), rows.new_empty(2, rows.shape[1])
        options = {"norm": compiled.Normalization(rows, residual), "sums": sums, "parameters": wanted[4] or wanted[5]}
        kernel: Any = compiled.fire_backward if pair.steps else compiled.qcfs_backward
        if pair.steps:
            options["chain"] = pair.chain
        _, *domega, dleak = kernel(_rows(grad, pair.steps), *pair.arguments(x, omega, leak), dy, **options)
        dleak = dleak.reshape(leak.shape) if leak.numel() == dleak.numel() else dleak.sum()
        count = x.numel() / x.shape[1] if pair.own else math.inf  # statistics that are given don't depend on x
        dx = None if not wanted[0] else torch.empty_like(x) if wanted[1] else dy
        dweight, dbias = compiled.norm_backward(dy, x, rows, inverse, sums, count, dx)
        domega = [one.to(omega.dtype) for one in domega if omega is not None]
        gradients = dx, dy, dweight, dbias, domega[0] if domega else None, dleak.to(leak.dtype)
        return *(one if want else None for one, want in zip(gradients, wanted, strict=False)), None, None, None


def _rows(x: Tensor, steps: int) -> Tensor:
    """``[T, M]``, the channels innermost; ``[M]`` without time."""
    return x.movedim(1, -1).view(steps, -1) if steps else x.movedim(1, -1).view(-1)
