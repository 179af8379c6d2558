"""What every network shares: one class is the ReLU ANN, the QCFS ANN and every SNN, by its activation factory.

    image --stem--> [N, C, H, W] --repeat T--> [T*N, C, H, W] --body, head--> [T, N, classes] --mean over T--> logits

Only a neuron looks at the time axis. A static image goes through the stem once, whatever T.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmht import functional
from lmht.neurons import Neuron

Activation = Callable[[], nn.Module]


def scaled(channels: int, width: float) -> int:
    """Channels under a width multiplier, at least 1."""
    return max(1, round(channels * width))


@torch.fx.wrap
def checked_images(images: Tensor, channels: int, steps: int, frames: bool) -> Tensor:
    """The batch as ``[N, C, H, W]`` (static) or ``[T*N, C, H, W]`` (frames), or a ValueError that says what is wrong."""
    wanted = f"[T={steps}, N, {channels}, H, W]" if frames else f"[N, {channels}, H, W]"
    if images.dim() != 4 + frames or images.shape[-3] != channels or (frames and images.shape[0] != steps):
        raise ValueError(
            f"the network takes {'event frames' if frames else 'images'} {wanted}, got {tuple(images.shape)}"
        )
    if not functional.symbolic(images) and bool(torch.isnan(images).any()):
        raise ValueError("the images hold NaN; check the data and its normalisation")
    return images.flatten(0, 1) if frames else images


@torch.fx.wrap
def repeat_in_time(x: Tensor, steps: int) -> Tensor:
    """``[N, ...] -> [T*N, ...]``: the same current at every step (a view for one step), in the memory format of ``x``."""
    return x if steps == 1 else torch.cat([x] * steps)


class Network(nn.Module):
    """Stem, body and head around the time axis.

    Args:
        stem: everything before the first neuron (analogue current; runs once on a static image).
        body: folded ``[T*N, C, H, W] -> [T*N, features]``; starts with the first neuron, or with the first residual block.
        head: ``[T*N, features] -> [T*N, classes]``, its last layer an ``nn.Linear``.
        steps: number of time-steps ``T``; 1 for an ANN.
        frames: the input is one frame a step, ``[T, N, C, H, W]``, instead of a static image ``[N, C, H, W]``.

    Raises:
        ValueError: a neuron's T is not ``steps``.
    """

    def __init__(
        self, stem: nn.Module, body: nn.Module, head: nn.Module, *, in_channels: int, steps: int, frames: bool
    ) -> None:
        super().__init__()
        for name, module in nn.ModuleList([stem, body, head]).named_modules():
            if isinstance(module, Neuron) and module.steps != steps:
                raise ValueError(
                    f"neuron {name} has T = {module.steps}, the network steps = {steps}; build it with steps={module.steps}"
                )
        self.stem, self.body, self.head = stem, body, head
        self.in_channels, self.steps, self.frames = in_channels, steps, frames

    def step_logits(self, images: Tensor) -> Tensor:
        """Logits of every step, ``[T, N, classes]``.

        Not an any-time output: the T-GIM of an LM-HT network is not causal, so step t has seen the steps after it.
        """
        x = self.stem(checked_images(images, self.in_channels, self.steps, self.frames))
        if not self.frames:
            x = repeat_in_time(x, self.steps)
        return self.head(self.body(x)).unflatten(0, (self.steps, -1))

    def forward(self, images: Tensor) -> Tensor:
        """Time-mean logits, ``[N, classes]``.

        Args:
            images: ``[N, C, H, W]``, or ``[T, N, C, H, W]`` if the network takes frames.

        Raises:
            ValueError: the shape does not fit or the images hold NaN.
        """
        return self.step_logits(images).mean(0)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """torch's, but all or nothing: a checkpoint that is refused leaves the network as it was."""
        before = self.state_dict(keep_vars=assign)
        before = before if assign else copy.deepcopy(before)
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except Exception:
            super().load_state_dict(before, strict=False, assign=assign)
            raise


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = False) -> nn.Sequential:
    """Convolution that keeps the size at stride 1, then batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias), nn.BatchNorm2d(outputs)
    )


def initialise(network: nn.Module) -> None:
    """He initialisation: fan-out for convolutions, fan-in for linear layers (VGG-16's head has no normalisation to mend a
    small start); biases and batch normalisation keep torch's."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
