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


def unasked(x: Tensor) -> bool:
    """Whether nobody may wait for the GPU that holds it: it is being captured, or ``torch.cuda.set_sync_debug_mode`` forbids it."""
    return x.is_cuda and bool(torch.cuda.is_current_stream_capturing() or torch.cuda.get_sync_debug_mode())


@torch.fx.wrap
def checked_images(images: Tensor, channels: int, steps: int, frames: bool) -> Tensor:
    """The batch as ``[N, C, H, W]`` (static) or ``[T*N, C, H, W]`` (frames), or a ValueError that says what is wrong."""
    wanted = f"[T={steps}, N, {channels}, H, W]" if frames else f"[N, {channels}, H, W]"
    if images.dim() != 4 + frames or images.shape[-3] != channels or (frames and images.shape[0] != steps):
        raise ValueError(
            f"the network takes {'event frames' if frames else 'images'} {wanted}, got {tuple(images.shape)}"
        )
    if not functional.symbolic(images) and not unasked(images) and bool(torch.isnan(images).any()):
        raise ValueError("the images hold NaN; check the data and its normalisation")
    return images.flatten(0, 1) if frames else images


@torch.fx.wrap
def repeat_in_time(x: Tensor, steps: int) -> Tensor:
    """``[N, ...] -> [T*N, ...]``: the same current at every step (a view for one step), in the memory format of ``x``."""
    return x if steps == 1 else torch.cat([x] * steps)


@torch.fx.wrap
def folded_images(images: Tensor, steps: int, frames: bool) -> Tensor:
    """``[N, ...]``, each image T times, or frames ``[T, N, ...]``, as ``[T*N, ...]``."""
    if not frames:
        return repeat_in_time(images, steps)
    if images.dim() < 2 or images.shape[0] != steps:
        raise ValueError(f"the network takes event frames [T={steps}, N, ...], got {tuple(images.shape)}")
    return images.flatten(0, 1)


@torch.fx.wrap
def per_step(x: Tensor, steps: int, rows: int) -> Tensor:
    """``[T*N, ...] -> [T, N, ...]``, or a ValueError if there are not as many rows as went in."""
    if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[0] != rows:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"the module must take folded [T*N, ...] to [T*N, ...], here {rows} rows; it returned {got}")
    return x.unflatten(0, (steps, rows // steps))


@torch.fx.wrap
def time_mean(x: Tensor) -> Tensor:
    """``[T, N, ...] -> [N, ...]``."""
    return x.mean(0)


def check_neurons(network: nn.Module, steps: int) -> None:
    """ValueError unless every neuron has so many steps and takes the folded layout, and no network inside repeats in time too."""
    for name, module in network.named_modules():
        if isinstance(module, MultiStep) and module is not network:
            spiking = any(isinstance(inner, Neuron) for inner in module.modules())
            if module.steps != 1 or (spiking and steps != 1):
                raise ValueError(
                    f"{name} is a network on images itself, with steps = {module.steps}; take it alone, without what is around it"
                )
        if isinstance(module, Neuron) and module.steps != steps:
            raise ValueError(
                f"neuron {name} has T = {module.steps}, the network steps = {steps}; build it with steps={module.steps}"
            )
        if (
            isinstance(module, Neuron)
            and name.partition(".")[0] == "stem"
            and isinstance(network, Network)
            and not network.frames
        ):
            raise ValueError(f"neuron {name} stands in the stem, which sees a static image once; put it into the body")
        if isinstance(module, Neuron) and not module.folded:
            raise ValueError(f"neuron {name} takes [T, N, ...]; inside a network time is folded: leave folded=True")


class MultiStep(nn.Module):
    """A module on folded ``[T*N, ...]`` as a network on images: it sees each image T times, or one frame a step.

    Args:
        module: ``[T*N, ...] -> [T*N, classes]``, step by step but for its neurons.
        steps: number of time-steps ``T``; 1 for an ANN.
        frames: the input is one frame a step, ``[T, N, ...]``, instead of a static image ``[N, ...]``.

    Raises:
        ValueError: a neuron's T is not ``steps``, or its layout is not the folded one.
    """

    def __init__(self, module: nn.Module, steps: int, *, frames: bool = False) -> None:
        super().__init__()
        functional.check_steps(steps)
        self.module, self.steps, self.frames = module, steps, frames
        check_neurons(self, steps)

    def step_logits(self, images: Tensor) -> Tensor:
        """Logits of every step, ``[T, N, classes]``.

        Not an any-time output: the T-GIM of an LM-HT network is not causal, so step t has seen the steps after it.
        """
        self._check()
        x = folded_images(images, self.steps, self.frames)
        return per_step(self.module(x), self.steps, x.shape[0])

    def _check(self) -> None:
        """At each pass: neurons may have been put in since the network was made."""
        if not torch.compiler.is_compiling():
            check_neurons(self, self.steps)

    def forward(self, images: Tensor) -> Tensor:
        """Time-mean logits, ``[N, classes]``.

        Args:
            images: ``[N, C, H, W]``, or ``[T, N, C, H, W]`` if the network takes frames.

        Raises:
            ValueError: the shape does not fit, or a :class:`Network`'s images hold NaN.
        """
        return time_mean(self.step_logits(images))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """torch's, but all or nothing: a checkpoint that is refused leaves the network as it was."""
        before = self.state_dict(keep_vars=assign)
        before = before if assign else copy.deepcopy(before)
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except Exception:  # whatever it was: the network is put back, and it is raised again
            super().load_state_dict(before, strict=False, assign=assign)
            raise


class Network(MultiStep):
    """Stem, body and head around the time axis.

    Args:
        stem: everything before the first neuron (analogue current; runs once on a static image).
        body: folded ``[T*N, C, H, W] -> [T*N, features]``; starts with the first neuron, or with the first residual block.
        head: ``[T*N, features] -> [T*N, classes]``, its last layer an ``nn.Linear``.
        steps: number of time-steps ``T``; 1 for an ANN.
        frames: the input is one frame a step, ``[T, N, C, H, W]``, instead of a static image ``[N, C, H, W]``.

    Raises:
        ValueError: a neuron's T is not ``steps``, its layout is not the folded one, or it stands in a static image's stem.
    """

    def __init__(
        self, stem: nn.Module, body: nn.Module, head: nn.Module, *, in_channels: int, steps: int, frames: bool
    ) -> None:
        nn.Module.__init__(self)  # not MultiStep's: the stem runs once, so there is no one module on [T*N, ...]
        functional.check_steps(steps)
        self.stem, self.body, self.head = stem, body, head
        self.in_channels, self.steps, self.frames = in_channels, steps, frames
        check_neurons(self, steps)

    def step_logits(self, images: Tensor) -> Tensor:
        self._check()
        x = self.stem(checked_images(images, self.in_channels, self.steps, self.frames))
        if not self.frames:
            x = repeat_in_time(x, self.steps)
        return per_step(self.head(self.body(x)), self.steps, x.shape[0])


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = False) -> nn.Sequential:
    """Convolution that keeps the size at stride 1, then batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias), nn.BatchNorm2d(outputs)
    )


def initialise(network: nn.Module) -> None:
    """He initialisation: fan-out for convolutions, fan-in for linear layers (VGG-16's head has no normalisation to mend a
    small start); biases and batch normalisation keep torch's."""
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or module.weight.is_meta:
            continue  # on the meta device there is nothing to draw, and torch imports sympy for it
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
