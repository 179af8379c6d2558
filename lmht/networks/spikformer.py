"""Transformer-4-384: Spikformer with any activation (Table S1)."""

import torch
from torch import Tensor, nn

from lmht import fusion
from lmht.networks.base import Activation, Network, conv_bn, initialise, scaled


class PatchSplitting(nn.Module):
    """Convolutions 48-96-192-384 after the stem's, with 3x3/2 max-pooling after the third and fourth, and a skip with a
    convolution as relative position. Max-pooling after a neuron is not affine (see :class:`Attention`)."""

    def __init__(self, dims: list[int], activation: Activation, pools: tuple[bool, bool]) -> None:
        super().__init__()
        pool3, pool4 = (nn.MaxPool2d(3, 2, 1) if pool else nn.Identity() for pool in pools)
        self.split = fusion.Sequential(
            activation(),
            conv_bn(dims[0], dims[1]),
            activation(),
            conv_bn(dims[1], dims[2]),
            activation(),
            pool3,
            conv_bn(dims[2], dims[3]),
            activation(),
            pool4,
        )
        self.position = fusion.Sequential(conv_bn(dims[3], dims[3]), activation())

    def forward(self, x: Tensor) -> Tensor:
        x = self.split(x)
        return (x + self.position(x)).flatten(2).transpose(1, 2)


class TokenLinear(nn.Module):
    """Linear layer, then batch normalisation over samples and tokens: ``[B, tokens, inputs] -> [B, tokens, outputs]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    """Spiking self-attention ``(q k^T) v * 0.125`` without softmax.

    A product of spike trains is not affine: the network-level equalities of Theorems 4.4 and A.2 do not hold through it.
    """

    scale = 0.125

    def __init__(self, dim: int, heads: int, activation: Activation) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}; choose another width")
        self.heads = heads
        self.q, self.k, self.v = (nn.Sequential(TokenLinear(dim, dim), activation()) for _ in range(3))
        self.neuron = activation()
        self.project = nn.Sequential(TokenLinear(dim, dim), activation())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = torch.matmul(q, torch.matmul(k.transpose(-2, -1), v)) * self.scale  # no softmax: any order will do
        return self.project(self.neuron(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and MLP, each added to its input's spikes."""

    def __init__(self, dim: int, heads: int, ratio: int, activation: Activation) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, activation)
        self.mlp = nn.Sequential(
            TokenLinear(dim, dim * ratio), activation(), TokenLinear(dim * ratio, dim), activation()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class _TokenMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def spikformer(
    activation: Activation,
    *,
    classes: int,
    steps: int = 1,
    width: float = 1.0,
    depth: int = 4,
    heads: int = 12,
    ratio: int = 4,
    pools: tuple[bool, bool] = (True, True),
    in_channels: int = 3,
    frames: bool = False,
) -> Network:
    """Transformer-4-384.

    Args:
        activation: makes one activation.
        steps: ``T`` of the activations; 1 for an ANN.
        width: multiplies the 384 features (rounded to a multiple of ``heads``) and the patch convolutions.
        depth: number of blocks. heads: attention heads. ratio: MLP ratio.
        pools: max-pool after the third and the fourth patch convolution; small images take fewer.
        in_channels: 3 for colour, 1 for grey, 2 for event frames.
        frames: one frame a step instead of a static image.
    """
    dim = max(heads, heads * round(384 * width / heads))
    dims = [scaled(48, width), scaled(96, width), scaled(192, width), dim]
    body = nn.Sequential(
        PatchSplitting(dims, activation, pools),
        *(Block(dim, heads, ratio, activation) for _ in range(depth)),
        _TokenMean(),
    )
    network = Network(
        conv_bn(in_channels, dims[0]),
        body,
        nn.Sequential(nn.Linear(dim, classes)),
        in_channels=in_channels,
        steps=steps,
        frames=frames,
    )
    initialise(network)
    return network
