"""ResNet-18/19/20/34 and MS-ResNet-18/34 (the paper's appendix: stems, stages, shortcuts)."""

from typing import Literal

from torch import Tensor, nn

from lmht import fusion
from lmht.networks.base import Activation, Network, conv_bn, initialise, scaled

Stem = Literal["small", "imagenet", "imagenet-avg"]


class BasicBlock(nn.Module):
    """conv-BN-neuron-conv-BN plus shortcut, then a neuron: the sum is a current, so the block's input is spikes."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *conv_bn(inputs, outputs, stride=stride), activation(), *conv_bn(outputs, outputs)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, kernel=1, stride=stride)
        self.neuron = activation()

    def forward(self, x: Tensor) -> Tensor:
        return fusion.chain([self.residual, self.neuron], x, residual=self.shortcut(x))


class MSBlock(nn.Module):
    """neuron-conv-BN-neuron-conv-BN added to the membrane potential: the block passes on a current, not spikes.

    Where the size changes, the 1x1 shortcut convolution sees the first neuron's spikes, so that every convolution but the
    network's first is spike-driven.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.neuron = activation()
        self.residual = fusion.Sequential(
            *conv_bn(inputs, outputs, stride=stride), activation(), *conv_bn(outputs, outputs)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else conv_bn(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neuron(x)
        return self.residual(spikes) + (x if self.shortcut is None else self.shortcut(spikes))


_STAGES = {  # channels of the stem; blocks, channels and stride of each stage
    18: (64, ((2, 64, 1), (2, 128, 2), (2, 256, 2), (2, 512, 2))),
    19: (128, ((3, 128, 1), (3, 256, 2), (2, 512, 2))),
    20: (16, ((3, 16, 1), (3, 32, 2), (3, 64, 2))),
    34: (64, ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))),
}


def resnet(
    depth: Literal[18, 19, 20, 34],
    activation: Activation,
    *,
    classes: int,
    steps: int = 1,
    width: float = 1.0,
    stem: Stem = "small",
    in_channels: int = 3,
    frames: bool = False,
    membrane_shortcut: bool = False,
) -> Network:
    """ResNet whose activations come from a factory; ``membrane_shortcut`` builds MS-ResNet.

    Args:
        depth: 18, 19, 20 or 34. ResNet-19 has the head 512-256-activation-classes.
        activation: makes one activation (``nn.ReLU``, ``lambda: LMHT(2, 2)``, ...).
        steps: ``T`` of the activations; 1 for an ANN.
        width: multiplies every channel count.
        stem: ``small`` = 3x3; ``imagenet`` = 7x7/2, BN, neuron, 3x3/2 max-pool; ``imagenet-avg`` = the same with an average
            pool. Max-pooling after a neuron is not affine, so in the ``imagenet`` stem the equalities of Theorems 4.4 and A.2
            do not hold in general; ``imagenet-avg`` keeps them. (MS-ResNet has no neuron before the pool: its max-pool works
            on the static current, where both hold.)
        in_channels: 3 for colour, 1 for grey, 2 for event frames.
        frames: one frame a step instead of a static image.
    """
    first, stages = _STAGES[depth]
    channels = scaled(first, width)
    layers: list[nn.Module] = []
    if stem == "small":
        entry: list[nn.Module] = [conv_bn(in_channels, channels)]
    elif stem in ("imagenet", "imagenet-avg"):
        entry = [conv_bn(in_channels, channels, kernel=7, stride=2)]
        pool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.AvgPool2d(3, 2, 1)
        (entry if membrane_shortcut else layers).append(pool)
    else:
        raise ValueError(f"stem must be 'small', 'imagenet' or 'imagenet-avg', got {stem!r}")
    if not membrane_shortcut:
        layers.insert(0, activation())
    block = MSBlock if membrane_shortcut else BasicBlock
    for blocks, base, stride in stages:
        outputs = scaled(base, width)
        for i in range(blocks):
            layers.append(block(channels, outputs, stride if i == 0 else 1, activation))
            channels = outputs
    if membrane_shortcut:
        layers.append(activation())
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    hidden = scaled(256, width)
    head = (
        nn.Sequential(nn.Linear(channels, hidden), activation(), nn.Linear(hidden, classes))
        if depth == 19
        else nn.Sequential(nn.Linear(channels, classes))
    )
    network = Network(
        nn.Sequential(*entry), nn.Sequential(*layers), head, in_channels=in_channels, steps=steps, frames=frames
    )
    initialise(network)
    return network
