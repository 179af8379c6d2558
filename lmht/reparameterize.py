"""Reparameterisation: an LM-HT network over T steps as a one-level network over L*T steps (Theorem A.2)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from lmht.conversion import replace_modules
from lmht.functional import compute_dtype, initial_potential
from lmht.graph import (
    Flow,
    Kind,
    Norm,
    Step,
    check_affine,
    check_batch,
    check_same,
    check_time,
    check_unchanged,
    copied,
    flow,
    unwrap,
    value_of,
)
from lmht.networks.base import MultiStep
from lmht.neurons import LMHT, MHT, Neuron
from lmht.surrogate import fire
from lmht.tgim import FixedTGIM


def expand_tgim(omega: Tensor, leak: Tensor, levels: int) -> FixedTGIM:
    """``omega_hat = omega / L`` on every L x L block of an LT x LT matrix; leak lambda between windows, 1 inside one.

    Args:
        omega: ``[T, T]``. leak: ``[]`` or ``[T, 1]``. levels: ``L``.
    """
    steps = len(omega)
    omega_hat = torch.kron(omega, torch.full((levels, levels), 1 / levels, dtype=omega.dtype, device=omega.device))
    leak_hat = omega.new_ones(steps, levels)
    leak_hat[:, :1] = leak
    return FixedTGIM(omega_hat, leak_hat.reshape(-1, 1))


def is_plain(neuron: Neuron) -> bool:
    """Whether it computes what an M-HT or LM-HT neuron does, as subclasses may not."""
    kind = type(neuron)
    inherited = kind.forward is Neuron.forward and kind.__call__ is nn.Module.__call__
    return inherited and kind.emit in (MHT.emit, LMHT.emit)


def window_tgim(neuron: Neuron) -> tuple[Tensor, Tensor]:
    """Omega and leak of a multi-level neuron; the identity for one without T-GIM."""
    if isinstance(neuron, LMHT):
        return neuron.tgim()
    assert isinstance(neuron, MHT)
    return torch.eye(neuron.steps, dtype=torch.float64), torch.tensor(neuron.leak, dtype=torch.float64)


@torch.no_grad()
def reparameterize(network: nn.Module, *, inexact: bool = False) -> MultiStep:
    """One-level network over ``L * T`` steps with the same spikes, for eval mode.

    Every current is cut into L equal parts: biases and batch normalisation's running means and shifts are divided by L, and so are
    the weights that see the image; those of spike-driven layers stay. The last layer's weights are multiplied by L instead, so that
    the time-mean logits agree. Spike sums are equal wherever no window leaves the exactness region (see :func:`certify`).

    Args:
        network: :class:`~lmht.networks.MultiStep` (or :class:`~lmht.networks.Network`) of :class:`~lmht.neurons.LMHT` or
            :class:`~lmht.neurons.MHT` neurons that share L and T, also inside DataParallel, DistributedDataParallel,
            AveragedModel or what torch.compile returns; not changed.
        inexact: take operations between two neurons that are not affine (a max-pool): the spikes then differ.

    Raises:
        ValueError: no such neurons, neurons that do not share L and T, an operation that can't be cut into L parts or, unless
            ``inexact``, that is not affine, or what :mod:`lmht.graph` refuses.
    """
    twin, found = _prepared(network, "no exact twin", inexact)
    levels, _ = _levels_and_steps(twin)
    for tensor, power in _cut(found, twin):
        if power > 0:
            tensor.mul_(levels)
        elif power < 0:
            tensor.div_(levels)
    twin.steps *= levels
    replace_modules(twin, Neuron, _one_level)
    check_same(found, twin, Neuron, "no exact twin")
    return twin


def _one_level(neuron: nn.Module) -> LMHT:
    """A neuron's twin."""
    assert isinstance(neuron, Neuron)
    levels, steps = neuron.levels, neuron.steps
    tgim = expand_tgim(*window_tgim(neuron), levels)
    return LMHT(1, steps * levels, theta=neuron.theta, v0=neuron.v0, tgim=tgim)


def repeat_frames(images: Tensor, network: MultiStep, twin: MultiStep) -> Tensor:
    """The input that the reparameterised twin takes: a static image as it is, each event frame L times."""
    return images.repeat_interleave(twin.steps // network.steps, 0) if network.frames else images


@dataclass
class LayerCertificate:
    """What :func:`certify` found in one layer, over all data; a window is one neuron in one time-step of one sample.

    Attributes:
        windows: number of windows.
        outside: windows of the LM-HT network outside the exactness region.
        spikes: spikes of the LM-HT network.
        difference: upper bound on ``sum |s(t) - s_hat(t)|`` over all windows, ``s_hat(t)`` the twin's spikes in the L steps of
            window t. It includes what arrives from layers before, and it is attained: in exact arithmetic it is the sum.
        margin: smallest distance of a potential from a threshold, in units of theta. Floats keep the promise of the two
            numbers above as long as their rounding stays below it; exact ties (0) need exact arithmetic.
    """

    windows: int = 0
    outside: int = 0
    spikes: int = 0
    difference: int = 0
    margin: float = float("inf")

    @property
    def share_outside(self) -> float:
        return self.outside / self.windows


@torch.no_grad()
def certify(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, LayerCertificate]:
    """Say, for the data given, how far the reparameterised twin can differ from an LM-HT network, layer by layer.

    Theorem A.2 makes the currents of window t sum to ``I(t)``, in L equal parts. The spikes are then equal too if the window
    is in the exactness region (A) ``u < theta and I < L * theta`` or (B) ``u >= 0 and I >= 0`` with ``u = lambda * v(t-1)``,
    so **no window outside, in a layer and all before it, means equal spikes in every window** of that layer (proved for all L,
    all T, all reals in ``theorems/proofs``). A window outside may differ, and what comes after it, in time or in depth, too.
    All of that is in ``difference``: the twin is followed window by window, at T convolutions instead of L * T, which is
    possible because between two neurons everything is affine and so needs a window's spike sum only.

    Args:
        network: as for :func:`reparameterize`; not changed.
        batches: inputs as the network takes them, ``[N, C, H, W]`` or ``[T, N, C, H, W]`` each.

    Returns:
        By the name of each neuron layer, in order of definition.

    Raises:
        ValueError: what :func:`reparameterize` and :func:`lmht.graph.check_batch` refuse, or no data.
    """
    both, found = _with_twin(network, "no certificate", _WithTwin)
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise ValueError(f"certify takes several batches, a list say ([images] for one), got {type(batches).__name__}")
    for batch in batches:
        if isinstance(batch, Tensor) and batch.numel():
            check_batch(unwrap(network), found, batch)
        if not isinstance(batch, Tensor) or not bool(batch.isfinite().all()):
            what = "one with NaN or infinite values" if isinstance(batch, Tensor) else f"a {type(batch).__name__}"
            raise ValueError(
                f"certify takes batches of images, got {what}; of (images, labels) give it the images alone"
            )
        both(torch.cat([batch, batch], 1 if both.frames else 0))
    layers = {name: module.found for name, module in both.named_modules() if isinstance(module, _WithTwin)}
    if unseen := [name for name, layer in layers.items() if not layer.windows]:
        if len(unseen) < len(layers):
            raise ValueError(f"the forward never calls {', '.join(unseen)}; remove it")
        raise ValueError("certify needs at least one batch with at least one sample")
    return layers


@torch.no_grad()
def foretell(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the reparameterised twin will say of each image, followed as in :func:`certify`: at 2 T convolutions.

    Args:
        network: as for :func:`certify`; images: ``[N, C, H, W]`` or ``[T, N, C, H, W]``.

    Returns:
        The twin's time-mean logits ``[N, classes]``, and ``[N]`` whether all its spike sums equal the network's, which promises the
        network's own prediction.

    Raises:
        ValueError: as :func:`certify`.
    """
    both, found = _with_twin(network, "can't follow the twin", _Followed)
    if not isinstance(images, Tensor):
        raise ValueError(f"foretell takes a batch of images, got {type(images).__name__}")
    if images.numel():
        check_batch(unwrap(network), found, images)
    logits = both(torch.cat([images, images], 1 if both.frames else 0))
    n = images.shape[int(both.frames)]
    different = [d for module in both.modules() if isinstance(module, _Followed) for d in module.different]
    of_sample = [
        d.unflatten(0, (n, len(d) // max(n, 1))).any(1) for d in different
    ]  # a view may make several rows of one
    return logits[len(logits) // 2 :], ~torch.stack(of_sample).any(0)


def _prepared(network: nn.Module, what: str, inexact: bool = False) -> tuple[MultiStep, Flow]:
    """A copy in eval mode and what it does, or the ValueError of :func:`reparameterize`."""
    network = unwrap(network)
    check_unchanged(network)
    network = check_time(network)
    _levels_and_steps(network)
    own = copied(network).eval()
    assert isinstance(own, MultiStep)
    found = flow(own)
    check_affine(found, what, inexact)
    return own, found


def _with_twin(
    network: nn.Module, what: str, both_neurons: type["_WithTwin"] | type["_Followed"]
) -> tuple[MultiStep, Flow]:
    both, found = _prepared(network, what)
    _cut(found, both)  # what has no twin can't be followed
    replace_modules(both, Neuron, both_neurons)
    check_same(found, both, both_neurons, what)
    return both, found


class _Followed(nn.Module):
    """A neuron on the first half of the batch, on the second half its twin, whose spikes are summed over each window."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        assert isinstance(neuron, Neuron)
        self.neuron = neuron
        self.twin_emit = _one_level(neuron).emit  # no module of the network, whose neurons have T steps
        self.different: list[Tensor] = []  # of every call, by sample: a neuron may be used in several places

    def forward(self, x: Tensor) -> Tensor:
        steps, theta = self.neuron.steps, self.neuron.theta
        x, x_hat = x.unflatten(0, (steps, 2, len(x) // (2 * steps))).unbind(1)
        parts = x_hat.new_zeros(steps, self.neuron.levels, *x_hat.shape[1:])
        parts[:, 0] = x_hat  # the twin mixes a window's currents: their sum counts, not how they share it
        spikes = self.twin_emit(parts.flatten(0, 1)).unflatten(0, parts.shape[:2])
        own, outs = self.neuron.emit(x), theta * spikes.sign_().sum(1)
        self.different.append((own != outs).any(0).flatten(1).any(1))
        return torch.stack([own, outs], 1).flatten(0, 2)


class _WithTwin(nn.Module):
    """A neuron on the first half of the batch, on the second half its twin: L one-level steps a window, their spikes summed."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        assert isinstance(neuron, Neuron)
        self.neuron, self.found = neuron, LayerCertificate()

    def forward(self, x: Tensor) -> Tensor:
        theta, levels, steps, dtype = self.neuron.theta, self.neuron.levels, self.neuron.steps, x.dtype
        x, x_hat = x.to(compute_dtype(x)).unflatten(0, (steps, 2, len(x) // (2 * steps))).unbind(1)
        omega, leak = (part.to(x) for part in window_tgim(self.neuron))
        leaks = leak.expand(steps, 1)[:, 0]
        v = v_hat = initial_potential(x, self.neuron.v0)
        outs = []
        for t in range(steps):
            u, v_hat = leaks[t] * v, leaks[t] * v_hat
            m, current, part = u, torch.zeros_like(u), torch.zeros_like(u)
            for j in range(steps):
                m = m + omega[t, j] * x[j]
                current = current + omega[t, j] * x[j]
                part = part + omega[t, j] / levels * x_hat[j]
            s, s_hat = fire(m, theta=theta, levels=levels), torch.zeros_like(v_hat)
            v = m - s * theta
            for _ in range(levels):
                m_hat = v_hat + part
                spike = fire(m_hat, theta=theta, levels=1)
                v_hat, s_hat = m_hat - spike * theta, s_hat + spike
            outs.append(torch.stack([s, s_hat]) * theta)
            inside = ((u < theta) & (current < levels * theta)) | ((u >= 0) & (current >= 0))
            self.found.windows += s.numel()
            self.found.outside += int((~inside).sum()) if levels > 1 else 0  # one level is its own twin
            self.found.spikes += int(s.sum(dtype=torch.float64))
            self.found.difference += int((s - s_hat).abs().sum(dtype=torch.float64))
            if s.numel():
                margin = (m / theta - (m / theta).round().clamp(1, levels)).abs().min()
                self.found.margin = min(self.found.margin, float(margin))
        return torch.stack(outs).flatten(0, 2).to(dtype)


def _levels_and_steps(network: nn.Module) -> tuple[int, int]:
    shapes = {(module.levels, module.steps) for module in network.modules() if isinstance(module, Neuron)}
    if len(shapes) != 1:
        raise ValueError(
            f"reparameterisation needs neurons that share L and T, got (L, T) = {sorted(shapes) or 'none at all'}"
        )
    for name, module in network.named_modules():
        if isinstance(module, Neuron) and not is_plain(module):
            raise ValueError(
                f"{name} ({type(module).__name__}) has dynamics of its own; it must be an MHT or LMHT neuron"
            )
    return shapes.pop()


def _cut(found: Flow, network: nn.Module) -> list[tuple[Tensor, int]]:
    """The tensors that a twin has divided (-1) or multiplied (+1) by L, or left (0).

    A current arrives ``whole`` as long as it is the image itself; the first weights that it meets cut it. The last weights before
    the output mend the mean over L times as many steps.
    """
    whole: dict[fx.Node, bool] = {}
    powers: dict[int, tuple[Tensor, int]] = {}
    last = _last_layers(found)
    for step in found.steps:
        arriving = {whole.get(node, True) for node in step.inputs}
        whole[step.node] = out = all(arriving)
        if step.kind is Kind.OFFSET:
            raise ValueError(f"the offset of {step.name} can't be cut into L parts; make it the bias of a layer")
        if len(arriving) > 1:
            raise ValueError(f"{step.name} joins the image itself with a layer's output; put a layer between")
        if step.kind is Kind.ACTIVATION and out:
            raise ValueError(f"{step.name} sees the image itself; put a layer with weights before it")
        if step.kind is Kind.ACTIVATION and not isinstance(step.module, Neuron):
            raise ValueError(f"{step.name} is an activation that is no neuron; replace it")
        if step.kind is Kind.NOT_AFFINE and not step.sources:
            raise ValueError(f"{step.name} before the first neuron is not affine; replace it")
        if step.kind in (Kind.SYNAPSE, Kind.NORMALISATION):
            whole[step.node] = False
            scaled = (step.node in last) - out
            shifted = (step.node in last) - 1
            assert step.module is not None
            tensors = {"weight": scaled, "bias": shifted}
            if isinstance(step.module, Norm):
                tensors["running_mean"] = 0 if out else -1
                if scaled and step.module.weight is None:
                    raise ValueError(
                        f"{step.name} has no weight to cut the image or to mend the logits by; set affine=True"
                    )
            for name, power in tensors.items():
                if (tensor := getattr(step.module, name)) is not None:
                    known = powers.setdefault(id(tensor), (tensor, power))[1]
                    if known != power:
                        raise ValueError(
                            f"{name} of {step.name} is used in two places, of which one has to be scaled; untie it"
                        )
    seen = {step.node for step in found.steps}
    modules = dict(network.named_modules(remove_duplicate=False))
    for node in found.graph.nodes:  # parameters that are used as they are, too
        if node.op == "get_attr" and not all(user.target is getattr for user in node.users):  # its dtype, say
            used = [value_of(node, modules)]
        else:
            used = [*modules[str(node.target)].parameters()] if node.op == "call_module" and node not in seen else []
        if any(powers.get(id(tensor), (tensor, 0))[1] for tensor in used):
            raise ValueError(f"{node.target} is used in two places, of which one has to be scaled; untie it")
    return list(powers.values())


def _last_layers(found: Flow) -> set[fx.Node]:
    """The layers with weights after which nothing but parameterless linear operations come."""
    steps = {step.node: step for step in found.steps}
    last, ahead = set(), list(next(node for node in found.graph.nodes if node.op == "output").all_input_nodes)
    while ahead:
        step: Step | None = steps.get(ahead.pop())
        if step is not None and step.kind in (Kind.SYNAPSE, Kind.NORMALISATION):
            last.add(step.node)
        elif step is not None and step.kind in (Kind.LINEAR, Kind.OFFSET):
            ahead += step.inputs
        else:
            name = "the image" if step is None else step.name
            raise ValueError(f"no layer with weights stands between {name} and the output; put a linear layer there")
    behind = set(last)
    for step in found.steps:
        if behind.isdisjoint(step.inputs):
            continue
        if step.kind in (Kind.SYNAPSE, Kind.NORMALISATION, Kind.ACTIVATION):
            raise ValueError(
                f"{step.name} sees a layer whose output is also the network's, and would be scaled with it; put a linear layer "
                "before the output"
            )
        behind.add(step.node)
    return last
