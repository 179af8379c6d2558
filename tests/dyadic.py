"""Dyadic networks and inputs, on which floats compute exactly: whoever sums in another order must agree bit for bit."""

from fractions import Fraction

import torch
from torch import Tensor, nn


@torch.no_grad()
def make_dyadic(network: nn.Module, offset: Fraction = Fraction(0), grid: float = 1 / 4) -> nn.Module:
    """Weights on a grid and batch normalisation that adds one too, plus an offset to the shift; in eval mode.

    With an offset, in a network whose spikes and thresholds are 1 and whose neurons see the sum of at most two layers, no
    potential is ever on the threshold in the first ``grid / offset / 2 - 1`` steps.
    """
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
            module.eps = 0.0
            module.weight.fill_(1.0)
            shift = torch.randint(-1, 3, module.bias.shape, generator=generator)
            module.bias.copy_(shift * grid + float(offset))
        elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            reach = 2 if module.weight[0].numel() < 100 else 1
            weight = torch.randint(-reach, reach + 2, module.weight.shape, generator=generator)
            module.weight.copy_(weight * grid)
            if module.bias is not None:
                module.bias.copy_(torch.randint(-1, 3, module.bias.shape, generator=generator) * grid + float(offset))
    return network.eval()


def dyadic_images(*shape: int, seed: int = 1) -> Tensor:
    """Integers in 0..3: with weights on a grid, currents on it."""
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed)).float()
