"""VGG-13 (the paper's, conv groups 2-2-2-3-1) and VGG-16."""

from typing import Literal

from torch import nn

from lmht import fusion
from lmht.networks.base import Activation, Network, conv_bn, initialise, scaled

_GROUPS = {  # convolutions in each group at 64, 128, 256, 512, 512 channels
    13: (2, 2, 2, 3, 1),
    16: (2, 2, 3, 3, 3),
}


def vgg(
    depth: Literal[13, 16],
    activation: Activation,
    *,
    classes: int,
    steps: int = 1,
    width: float = 1.0,
    pools: int | None = None,
    in_channels: int = 3,
    frames: bool = False,
) -> Network:
    """VGG whose activations come from a factory. All pooling is average pooling, so it is affine between neurons.

    Args:
        depth: 13 (the released code's groups 2-2-2-3-1, global average pooling after the last, linear head) or 16
            (2x2 average pooling after each group, convolutions with bias, head 512-4096-4096-classes with activations).
        activation: makes one activation.
        steps: ``T`` of the activations; 1 for an ANN.
        width: multiplies every channel count and the head's hidden features.
        pools: how many of the first groups are followed by 2x2 pooling; default all of them (VGG-13: all but the last). Small
            images need fewer: 8x8 digits take 2. VGG-16's head then sees the global average of what is left.
        in_channels: 3 for colour, 1 for grey, 2 for event frames.
        frames: one frame a step instead of a static image.
    """
    groups = _GROUPS[depth]
    if pools is None:
        pools = 4 if depth == 13 else 5
    layers: list[nn.Module] = []
    channels = in_channels
    for group, convolutions in enumerate(groups):
        outputs = scaled(min(64 * 2**group, 512), width)
        for _ in range(convolutions):
            layers += [conv_bn(channels, outputs, bias=depth == 16), activation()]
            channels = outputs
        if group < pools:
            layers.append(nn.AvgPool2d(2))
    stem, *body = layers
    body += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    hidden = scaled(4096, width)
    head = (
        nn.Sequential(nn.Linear(channels, classes))
        if depth == 13
        else nn.Sequential(
            nn.Linear(channels, hidden),
            activation(),
            nn.Linear(hidden, hidden),
            activation(),
            nn.Linear(hidden, classes),
        )
    )
    network = Network(stem, fusion.Sequential(*body), head, in_channels=in_channels, steps=steps, frames=frames)
    initialise(network)
    return network
