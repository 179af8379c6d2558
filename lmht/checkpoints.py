"""Checkpoints of the paper's released code: state dicts with names of their own, for the networks of :mod:`lmht.networks`.

Taken as given of these files: a neuron's T-GIM is ``mask`` (``Omega = 2 * sigmoid(mask) / T``), its leak ``alpha``
(``lambda = sigmoid(alpha) + 1/2``); layers have torch's names (``weight``, ``running_mean``, ...) and the architecture's shapes.
What is not known is asked for: how the modules are called, and which axis of ``mask`` is the current's step. Threshold and v(0)
are in no state dict: build the network with those of its training (from scratch: ``theta = 2 / L``, ``v(0) = 0``).
"""

from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import Tensor

from lmht.graph import Kind, flow
from lmht.networks import MultiStep

FIELDS = {"mask": "tgim.a", "alpha": "tgim.alpha"}


def import_released(
    network: MultiStep,
    state: Mapping[str, Tensor],
    layers: Mapping[str, str],
    *,
    current_axis: Literal[0, 1],
) -> None:
    """Load a released state dict, all of it or nothing.

    Args:
        network: with LM-HT neurons of the L, T, theta and v(0) that the file was trained with, and the bounded T-GIM.
        state: the file's state dict. ``mask`` may have any axes of length 1 beside its T x T, ``alpha`` any.
        layers: the file's module names to the network's, such as ``{"layer1.0.conv1": "body.1.residual.0"}``;
            :func:`layers_in_order` makes one.
        current_axis: the axis of ``mask`` that is the step of the current, 0 in Eq. 7 (``omega_tj``); the other is the input's.

    Raises:
        ValueError: a key without a place, two for one place, a place without a key, or a shape that does not fit; each is named,
            and the network is as it was.
    """
    if current_axis not in (0, 1):
        raise ValueError(f"current_axis must be 0 or 1, got {current_axis!r}")
    own = network.state_dict()
    constants = {name: value for name, value in own.items() if name.endswith("_extra_state")}
    loaded: dict[str, Tensor] = {}
    lost = []
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{key} is no tensor, but {type(value).__name__}; give the state dict alone")
        module, _, field = key.rpartition(".")
        name = f"{layers[module]}.{FIELDS.get(field, field)}" if module in layers else key
        if module not in layers or name not in own.keys() - constants.keys():
            lost.append(key)
            continue
        if name in loaded:
            raise ValueError(f"{key} is a second value for {name}; correct layers=")
        if field in FIELDS:
            value = _without_ones(value, own[name], key)
            value = value.T if field == "mask" and current_axis == 1 else value
        if value.shape != own[name].shape:
            raise ValueError(
                f"{key} is {list(value.shape)}, {name} {list(own[name].shape)}; is it this architecture, width, T?"
            )
        loaded[name] = value
    if lost:
        raise ValueError(f"the network has no place for {', '.join(lost)}; name their modules in layers=")
    if missing := [name for name in own if name not in loaded and name not in constants]:
        raise ValueError(f"the file has nothing for {', '.join(missing)}; name their modules in layers=")
    network.load_state_dict({**constants, **loaded})


def layers_in_order(network: MultiStep, state: Mapping[str, Tensor]) -> dict[str, str]:
    """``layers`` for :func:`import_released`, if the file has its modules in the order in which they are executed.

    Layers with weights are matched in this order among those of one shape, a batch normalisation with the layer right before it,
    neurons in this order. Names and shapes can't show whether the order is right (two neurons of a block may be swapped): look at
    the result, and at the accuracy of the network.

    Raises:
        ValueError: a module that is none of these, a normalisation that does not follow a layer, or other numbers of them than in
            the network.
    """
    found = flow(network)
    steps = {step.node: step for step in found.steps}
    ours: dict[str, list[str]] = {}
    for step in found.of(Kind.SYNAPSE, Kind.NORMALISATION, Kind.ACTIVATION):
        name, module = str(step.node.target), cast(Any, step.module)
        if step.kind is Kind.SYNAPSE:
            ours.setdefault(f"layers {list(module.weight.shape)}", []).append(name)
        elif step.kind is Kind.ACTIVATION and any(True for _ in module.parameters()):
            ours.setdefault("neurons with mask and alpha", []).append(name)
    norm_of = {
        str(s.inputs[0].target): str(s.node.target) for s in found.of(Kind.NORMALISATION) if s.inputs[0] in steps
    }
    theirs: dict[str, list[str]] = {}
    norms: dict[str, str] = {}
    fields: dict[str, set[str]] = {}
    for key in state:
        part, _, field = key.rpartition(".")
        fields.setdefault(part, set()).add(field)
    before = ""
    for part, has in fields.items():
        weight = state.get(f"{part}.weight")
        if has & FIELDS.keys():
            theirs.setdefault("neurons with mask and alpha", []).append(part)
        elif "running_mean" in has and before:
            norms[before] = part
        elif weight is not None and weight.dim() > 1:
            theirs.setdefault(f"layers {list(weight.shape)}", []).append(part)
        else:
            raise ValueError(
                f"{part} ({', '.join(sorted(has))}) is no layer, neuron, or normalisation right after a layer; "
                "write layers="
            )
        before = part if weight is not None and weight.dim() > 1 else ""
    counts, own = ({kind: len(names) for kind, names in side.items()} for side in (theirs, ours))
    if counts != own:
        differ = [
            f"{own.get(k, 0)} {k}, the file {counts.get(k, 0)}"
            for k in {**own, **counts}
            if own.get(k) != counts.get(k)
        ]
        raise ValueError(f"the network has {'; '.join(differ)}; build the architecture, width and T of the file")
    matched = {a: b for kind in ours for a, b in zip(theirs[kind], ours[kind], strict=True)}
    if extra := [norm for layer, norm in norms.items() if matched[layer] not in norm_of]:
        raise ValueError(f"the network normalises nothing where the file has {', '.join(extra)}; write layers=")
    return matched | {norm: norm_of[matched[layer]] for layer, norm in norms.items()}


def _without_ones(value: Tensor, like: Tensor, key: str) -> Tensor:
    """Of the shape of ``like``, if they differ in axes of length 1 only."""
    if [n for n in value.shape if n > 1] != [n for n in like.shape if n > 1]:
        raise ValueError(
            f"{key} is {list(value.shape)}, the neuron's is {list(like.shape)}; build the network with the file's T"
        )
    return value.reshape(like.shape)
