# mypy: ignore-errors
# ruff: noqa: RUF005
"""The fast GPU path, in Triton: a program keeps all T rows of a block of neurons in registers.

Where registers are too few (:func:`elements`; forward from T = 17 on) it reads them anew for each sum over T, which a cache
holds, and keeps ``dm`` ``[T, M]`` for two matrix products.

Products and sums stay separate (no fused multiply-add) and the division is IEEE's, so that a tie falls as in the reference. The
sums for Omega and lambda are partial sums of a fixed number of programs, added in a second step: bitwise equal from run to run on
one device. (Triton's language looks like Python and isn't: tuples that grow have no type there, and no unpacking.)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS_PER_SM = 8
WARPS = 4
IN_REGISTERS = 16  # steps


@triton.jit
def _rows(base, stride, offsets, mask, T: tl.constexpr, WIDE: tl.constexpr):
    rows = ()
    for t in tl.static_range(T):
        row = tl.load(base + tl.full((), t, tl.int64) * stride + offsets, mask=mask, other=0.0)
        rows = rows + (row.to(WIDE),)
    return rows


@triton.jit
def _start(v0, offsets, mask, POTENTIALS: tl.constexpr, WIDE: tl.constexpr):
    return tl.load(v0 + offsets, mask=mask, other=0.0) if POTENTIALS else tl.load(v0 + offsets * 0)


@triton.jit
def _potential(t: tl.constexpr, v, xs, omega, leak, T: tl.constexpr, MIXED: tl.constexpr):
    m = tl.load(leak + t) * v
    if MIXED:
        for j in tl.static_range(T):
            m = m + tl.load(omega + t * T + j) * xs[j]
    else:
        m = m + xs[t]
    return m


@triton.jit
def _emitted(m, theta, levels):
    quotient = m / theta if m.dtype == tl.float64 else tl.math.div_rn(m, theta)
    spikes = tl.maximum(tl.floor(quotient), 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(spikes, levels, propagate_nan=tl.PropagateNan.ALL) * theta


@triton.jit
def _grouped(x, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    return tl.sum(tl.reshape(x, (BLOCK // GROUP, GROUP)), axis=1)


@triton.jit
def _forward(
    x,
    out,
    omega,
    leak,
    v0,
    constants,
    size,
    stride,
    T: tl.constexpr,
    MIXED: tl.constexpr,
    POTENTIALS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    theta, levels = tl.load(constants), tl.load(constants + 1)
    xs = _rows(x, stride, offsets, mask, T, WIDE)
    v = _start(v0, offsets, mask, POTENTIALS, WIDE)
    for t in tl.static_range(T):
        m = _potential(t, v, xs, omega, leak, T, MIXED)
        emitted = _emitted(m, theta, levels)
        v = m - emitted
        target = out + tl.full((), t, tl.int64) * size + offsets
        tl.store(target, emitted.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    grad,
    x,
    dx,
    partial,
    omega,
    leak,
    v0,
    constants,
    size,
    grad_stride,
    stride,
    blocks,
    T: tl.constexpr,
    MIXED: tl.constexpr,
    POTENTIALS: tl.constexpr,
    CHAIN: tl.constexpr,
    PARAMETERS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,  # neighbours that lie in one thread: a sum holds one number for them
):
    theta, levels = tl.load(constants), tl.load(constants + 1)
    low, high = tl.load(constants + 2), tl.load(constants + 3)
    SUMS: tl.constexpr = ((T * T if MIXED else 0) + T) if PARAMETERS else 0
    sums = ()
    for _ in tl.static_range(SUMS):
        sums = sums + (tl.zeros((BLOCK // GROUP,), WIDE),)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        offsets = (block + tl.zeros((), tl.int64)) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < size
        xs = _rows(x, stride, offsets, mask, T, WIDE)
        gs = _rows(grad, grad_stride, offsets, mask, T, WIDE)
        v = _start(v0, offsets, mask, POTENTIALS, WIDE)
        befores = ()
        windows = ()
        dms = ()
        for t in tl.static_range(T):
            m = _potential(t, v, xs, omega, leak, T, MIXED)
            window = ((m >= low) & (m <= high)).to(WIDE)
            befores = befores + (v,)
            windows = windows + (window,)
            dms = dms + (gs[t] * window,)
            v = m - _emitted(m, theta, levels)
        if CHAIN:  # v(t) = m(t) - s(t) * theta passes on (1 - window) of its gradient
            later = dms[T - 1]
            chained = (later,)
            for back in tl.static_range(1, T):
                later = dms[T - 1 - back] + tl.load(leak + T - back) * later * (1.0 - windows[T - 1 - back])
                chained = (later,) + chained
            dms = chained
        for j in tl.static_range(T):
            if MIXED:
                d = tl.load(omega + j) * dms[0]
                for t in tl.static_range(1, T):
                    d = d + tl.load(omega + t * T + j) * dms[t]
            else:
                d = dms[j]
            target = dx + tl.full((), j, tl.int64) * size + offsets
            tl.store(target, d.to(dx.dtype.element_ty), mask=mask)
        if PARAMETERS:  # masked neurons have x = 0 and g = 0
            added = ()
            for t in tl.static_range(T):
                added = added + (sums[t] + _grouped(dms[t] * befores[t], BLOCK, GROUP),)
            if MIXED:
                for t in tl.static_range(T):
                    for j in tl.static_range(T):
                        added = added + (sums[T + t * T + j] + _grouped(dms[t] * xs[j], BLOCK, GROUP),)
            sums = added
    for i in tl.static_range(SUMS):
        tl.store(partial + tl.program_id(0) * SUMS + i, tl.sum(sums[i]))


@triton.jit
def _row(base, t, stride, offsets, mask, WIDE: tl.constexpr):
    return tl.load(base + (t + tl.zeros((), tl.int64)) * stride + offsets, mask=mask, other=0.0).to(WIDE)


@triton.jit
def _long_potential(t, v, x, stride, offsets, mask, omega, leak, steps, MIXED: tl.constexpr, WIDE: tl.constexpr):
    m = tl.load(leak + t) * v
    if MIXED:
        for j in range(steps):
            m = m + tl.load(omega + t * steps + j) * _row(x, j, stride, offsets, mask, WIDE)
    else:
        m = m + _row(x, t, stride, offsets, mask, WIDE)
    return m


@triton.jit
def _long_forward(
    x,
    out,
    omega,
    leak,
    v0,
    constants,
    size,
    stride,
    steps,
    MIXED: tl.constexpr,
    POTENTIALS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    theta, levels = tl.load(constants), tl.load(constants + 1)
    v = _start(v0, offsets, mask, POTENTIALS, WIDE)
    for t in range(steps):
        m = _long_potential(t, v, x, stride, offsets, mask, omega, leak, steps, MIXED, WIDE)
        emitted = _emitted(m, theta, levels)
        v = m - emitted
        target = out + (t + tl.zeros((), tl.int64)) * size + offsets
        tl.store(target, emitted.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _long_backward(
    grad,
    x,
    dm,  # first m(t), then its gradient: [T, M]
    partial,
    omega,
    leak,
    v0,
    constants,
    size,
    grad_stride,
    stride,
    steps,
    MIXED: tl.constexpr,
    POTENTIALS: tl.constexpr,
    CHAIN: tl.constexpr,
    PARAMETERS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    theta, levels = tl.load(constants), tl.load(constants + 1)
    low, high = tl.load(constants + 2), tl.load(constants + 3)
    start = _start(v0, offsets, mask, POTENTIALS, WIDE) + tl.zeros((BLOCK,), WIDE)
    v = start
    for t in range(steps):
        m = _long_potential(t, v, x, stride, offsets, mask, omega, leak, steps, MIXED, WIDE)
        tl.store(dm + (t + tl.zeros((), tl.int64)) * size + offsets, m, mask=mask)
        v = m - _emitted(m, theta, levels)
    tl.debug_barrier()  # here and below: what one thread writes another may read
    later = tl.zeros((BLOCK,), WIDE)
    m = _row(dm, steps - 1, size, offsets, mask, WIDE)
    for back in range(steps):
        t = steps - 1 - back
        window = ((m >= low) & (m <= high)).to(WIDE)
        d = _row(grad, t, grad_stride, offsets, mask, WIDE) * window
        if CHAIN:  # v(t) = m(t) - s(t) * theta passes on (1 - window) of its gradient
            d = d + tl.load(leak + t + 1, mask=back > 0, other=0.0) * later * (1.0 - window)
        later = d
        m = _row(dm, tl.maximum(t - 1, 0), size, offsets, mask, WIDE)  # of the step before
        tl.debug_barrier()
        tl.store(dm + (t + tl.zeros((), tl.int64)) * size + offsets, d, mask=mask)
        if PARAMETERS:
            before = tl.where(t > 0, m - _emitted(m, theta, levels), start)
            tl.store(partial + tl.program_id(0) * steps + t, tl.sum(d * before))


def _options(x: Tensor, omega: Tensor | None, v0: Tensor, block: int) -> dict[str, object]:
    wide = tl.float64 if x.dtype == torch.float64 else tl.float32
    types = {"MIXED": omega is not None, "POTENTIALS": v0.dim() > 0, "WIDE": wide, "BLOCK": block}
    return {**types, "num_warps": WARPS, "enable_fp_fusion": False}


def elements(steps: int, size: int, *, mixed: bool, parameters: bool) -> int:
    """Neurons of a thread in the backward pass that keeps its rows in registers; 0 if there are too few registers for one.

    16 bytes a load where they fit, more while that leaves a multiprocessor four programs.

    Args:
        size: bytes of an element.
    """
    if steps > IN_REGISTERS:
        return 0
    sums = steps * (steps * mixed + 1) if parameters else 0
    words = max(size // 4, 1)
    for each in (8, 4, 2, 1):
        group = vector(size, each)
        # rows, sums and Omega; what ptxas then takes is a tenth less or more (tests/test_triton.py)
        registers = words * (3 * steps * each + sums * each // group + 5 * steps**2 * mixed // 4) + 30
        if registers <= (232 if each == group else 128):
            return each
    return 0


def vector(size: int, each: int) -> int:
    """Neighbours of ``size`` bytes that a thread loads at once, of ``each`` that it has."""
    return min(16 // size, each)


def fire(x: Tensor, omega: Tensor | None, leak: Tensor, v0: Tensor, constants: Tensor, out: Tensor) -> Tensor:
    """``s(t) * theta`` as ``[T, M]``, for ``x [T, M]`` with dense rows; see :mod:`lmht.kernels.operator` for the rest."""
    steps, size = x.shape
    block = WARPS * 32 * (8 if steps <= 8 else 4)
    neuron = leak if omega is None else omega, leak, v0, constants  # without Omega, a pointer that is not read
    grid, options = (triton.cdiv(size, block),), _options(x, omega, v0, block)
    with torch.cuda.device_of(x):
        if steps > IN_REGISTERS:
            _long_forward[grid](x, out, *neuron, size, x.stride(0), steps, **options)
        else:
            _forward[grid](x, out, *neuron, size, x.stride(0), T=steps, **options)
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
    """``dx [T, M]``, ``domega [T, T]``, ``dleak [T]``; the last two empty without ``parameters``, or without Omega."""
    steps, size = x.shape
    each = elements(steps, x.element_size(), mixed=omega is not None, parameters=parameters)
    long, sums = not each, steps * ((0 if omega is None else steps) + 1) if parameters else 0
    block = WARPS * 32 * (each or 4)
    blocks = triton.cdiv(size, block)
    neuron = leak if omega is None else omega, leak, v0, constants
    options = {**_options(x, omega, v0, block), "CHAIN": chain, "PARAMETERS": parameters}
    with torch.cuda.device_of(x):
        if long:
            dm, partial = leak.new_empty(steps, size), leak.new_empty(blocks, steps if parameters else 0)
            _long_backward[(blocks,)](
                grad, x, dm, partial, *neuron, size, grad.stride(0), x.stride(0), steps, **options
            )
            dx.as_strided((steps, size), (size, 1)).copy_(dm if omega is None else omega.T @ dm)
            mixed = parameters and omega is not None
            return dx, dm @ x.to(dm.dtype).T if mixed else leak.new_empty(0, steps), partial.sum(0)
        programs = _programs(x, blocks) if parameters else blocks
        partial = leak.new_empty(programs, sums)
        options["GROUP"] = vector(x.element_size(), each)
        _backward[(programs,)](
            grad, x, dx, partial, *neuron, size, grad.stride(0), x.stride(0), blocks, T=steps, **options
        )
    totals = partial.sum(0)
    # an operator's outputs share no memory
    return dx, totals[steps:].reshape(-1, steps).clone(), totals[:steps].clone()


@triton.jit
def _scale(scale):
    vartheta = tl.load(scale)
    return tl.where((vartheta > 0) & (vartheta < float("inf")), vartheta, float("nan"))


@triton.jit
def _level(x, scale, levels):
    scaled = x * levels
    quotient = scaled / scale if scaled.dtype == tl.float64 else tl.math.div_rn(scaled, scale)
    return tl.floor(quotient + 0.5)


@triton.jit
def _value(level, scale, levels):
    clipped = tl.maximum(level, 0.0, propagate_nan=tl.PropagateNan.ALL)
    clipped = tl.minimum(clipped, levels, propagate_nan=tl.PropagateNan.ALL)
    height = scale / levels if scale.dtype == tl.float64 else tl.math.div_rn(scale, levels)
    return height * clipped


@triton.jit
def _qcfs_forward(x, out, scale, size, LEVELS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    vartheta, levels = _scale(scale), tl.full((), LEVELS, WIDE)
    row = tl.load(x + offsets, mask=mask, other=0.0).to(WIDE)
    emitted = _value(_level(row, vartheta, levels), vartheta, levels)
    tl.store(out + offsets, emitted.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _qcfs_backward(
    grad,
    x,
    dx,
    partial,
    scale,
    size,
    blocks,
    LEVELS: tl.constexpr,
    PARAMETERS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    vartheta, levels = _scale(scale), tl.full((), LEVELS, WIDE)
    total = tl.zeros((BLOCK,), WIDE)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        offsets = (block + tl.zeros((), tl.int64)) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < size
        row = tl.load(x + offsets, mask=mask, other=0.0).to(WIDE)
        g = tl.load(grad + offsets, mask=mask, other=0.0).to(WIDE)
        level = _level(row, vartheta, levels)
        masked = g * ((level >= 0) & (level <= levels)).to(WIDE)
        tl.store(dx + offsets, masked.to(dx.dtype.element_ty), mask=mask)
        if PARAMETERS:
            total += g * _value(level, vartheta, levels) - masked * row
    if PARAMETERS:
        tl.store(partial + tl.program_id(0), tl.sum(total))


def _programs(x: Tensor, blocks: int) -> int:
    """Programs that share the blocks where each leaves partial sums: a fixed number on one device."""
    units = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    return min(blocks, PROGRAMS_PER_SM * units)


def qcfs(x: Tensor, scale: Tensor, levels: int, out: Tensor) -> Tensor:
    """The activation of dense ``x [M]``; scale ``[]`` in the dtype that is computed in."""
    wide = tl.float64 if x.dtype == torch.float64 else tl.float32
    block = WARPS * 32 * 8
    with torch.cuda.device_of(x):
        _qcfs_forward[(triton.cdiv(len(x), block),)](
            x, out, scale, len(x), LEVELS=levels, WIDE=wide, BLOCK=block, num_warps=WARPS, enable_fp_fusion=False
        )
    return out


def qcfs_backward(
    grad: Tensor, x: Tensor, scale: Tensor, levels: int, dx: Tensor, *, parameters: bool
) -> tuple[Tensor, Tensor]:
    """``dx [M]`` and ``dscale []``, the latter unset without ``parameters``."""
    wide = tl.float64 if x.dtype == torch.float64 else tl.float32
    block = WARPS * 32 * 8
    blocks = triton.cdiv(len(x), block)
    programs = _programs(x, blocks) if parameters else blocks
    partial = scale.new_empty(programs if parameters else 0)
    with torch.cuda.device_of(x):
        _qcfs_backward[(programs,)](
            grad,
            x,
            dx,
            partial,
            scale,
            len(x),
            blocks,
            LEVELS=levels,
            PARAMETERS=parameters,
            WIDE=wide,
            BLOCK=block,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return dx, partial.sum() / scale
