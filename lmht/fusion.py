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
    learned = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if any(one is not None and (one.dtype != compute_dtype(x) or one.device != x.device) for one in learned):
        return False
    if norm.running_mean is None and x.dtype != compute_dtype(x):
        return False  # torch takes the statistics of halves in halves then
    if not all(isinstance(getattr(activation, name, 0), int | float) for name in ("theta", "leak", "v0")):
        return False  # what somebody made learnable
    steps: int = getattr(activation, "steps", 1)  # QCFS has no time
    if x.shape[0] % steps or not getattr(activation, "folded", True):
        return False
    return kernels.backend_for(x.unflatten(0, (steps, -1))) == "compiled"


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
            functional.check_arguments(x.unflatten(0, (pair.steps, -1)), **arguments, values=False)
        return _Normalized.apply(x, residual, norm.weight, norm.bias, omega, leak, *statistics(norm, x), pair)

    def arguments(self, x: Tensor, omega: Tensor | None, leak: Tensor) -> tuple[Any, ...]:
        """What the activation's kernels take, ``x`` first."""
        if not self.steps:
            return operator.rows(x[None], operator.strides(x[None]))[0], operator._number(leak, x), self.levels
        v0 = x.new_tensor(self.v0, dtype=compute_dtype(x))
        return operator.prepared(x.unflatten(0, (self.steps, -1)), omega, leak, v0, self.levels, self.theta)


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
        inverse = 1 / torch.sqrt(variance + pair.eps)
        scale = inverse if weight is None else weight * inverse
        shift = -mean * scale if bias is None else bias - mean * scale
        rows = repeated(scale, shift, mean)
        out, norm = torch.empty_like(x), compiled.Normalization(rows, residual)
        kernel: Any = compiled.fire if pair.steps else compiled.qcfs
        kernel(*pair.arguments(x, omega, leak), out, norm)
        # bias for its second derivative alone, which is refused
        ctx.save_for_backward(x, residual, weight, bias, omega, leak, rows, inverse)
        ctx.pair = pair
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, residual, weight, _, omega, leak, rows, inverse = ctx.saved_tensors
        pair, wanted = ctx.pair, ctx.needs_input_grad
        grad = grad.to(x.dtype).resolve_neg()
        grad = grad.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)
        dy, sums = torch.empty_like(x), rows.new_empty(2, rows.shape[1])
        options = {"norm": compiled.Normalization(rows, residual), "sums": sums, "parameters": wanted[4] or wanted[5]}
        rows_of_grad = grad.movedim(1, -1).view(max(pair.steps, 1), -1)
        kernel: Any = compiled.fire_backward if pair.steps else compiled.qcfs_backward
        if pair.steps:
            options["chain"] = pair.chain
        _, *domega, dleak = kernel(
            rows_of_grad if pair.steps else rows_of_grad[0], *pair.arguments(x, omega, leak), dy, **options
        )
        dleak = dleak.reshape(leak.shape) if leak.numel() == dleak.numel() else dleak.sum()
        channels = x.shape[1]
        total, centred = sums.double().view(2, -1, channels).sum(1)  # of dy, and of dy * (x - mean)
        scale, _, mean = rows[:, :channels].double()
        count = x.numel() // channels if pair.own else math.inf  # statistics that are given don't depend on x
        factors = scale, -scale * inverse.double() ** 2 * centred / count, -scale * total / count, mean
        dx = None
        if wanted[0]:
            into = torch.empty_like(x) if wanted[1] else dy
            dx = compiled.norm_backward(dy, x, repeated(*factors).to(rows.dtype), into)
        gradients = (
            dx,
            dy,
            None if weight is None else (centred * inverse.double()).to(weight.dtype),
            total.to(rows.dtype),
            None if omega is None else domega[0].to(omega.dtype),
            dleak.to(leak.dtype),
        )
        return *(one if want else None for one, want in zip(gradients, wanted, strict=False)), None, None, None


def repeated(*channels: Tensor) -> Tensor:
    """``[C]`` each, as rows that hold them again and again up to a whole number of vectors."""
    length = len(channels[0])
    return torch.stack(channels).repeat(1, math.lcm(length, compiled.WIDEST) // length)
