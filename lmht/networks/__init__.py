"""The paper's networks, each one definition for ANN and SNN, by activation factory."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lmht.networks.base import Activation, MultiStep, Network
from lmht.networks.resnet import resnet
from lmht.networks.spikformer import spikformer
from lmht.networks.vgg import vgg

_BUILDERS: dict[str, Callable[..., Network]] = {
    "ResNet-18": partial(resnet, 18),
    "ResNet-19": partial(resnet, 19),
    "ResNet-20": partial(resnet, 20),
    "ResNet-34": partial(resnet, 34),
    "MS-ResNet-18": partial(resnet, 18, membrane_shortcut=True),
    "MS-ResNet-34": partial(resnet, 34, membrane_shortcut=True),
    "VGG-13": partial(vgg, 13),
    "VGG-16": partial(vgg, 16),
    "Transformer-4-384": spikformer,
}
ARCHITECTURES = tuple(_BUILDERS)


def build(architecture: str, activation: Activation, *, classes: int, steps: int = 1, **options: Any) -> Network:
    """Build an architecture by the paper's name (:data:`ARCHITECTURES`); ``options`` are those of its builder.

    Raises:
        ValueError: unknown architecture.
    """
    if architecture not in _BUILDERS:
        raise ValueError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    return _BUILDERS[architecture](activation, classes=classes, steps=steps, **options)


__all__ = ["ARCHITECTURES", "Activation", "MultiStep", "Network", "build", "resnet", "spikformer", "vgg"]
