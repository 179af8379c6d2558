"""A training's forward and backward pass as a CUDA graph: on small images a GPU waits for launches, not for arithmetic."""

import warnings
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn


class Replayed:
    """A network on training batches: captured on the first one, replayed on each that has its shape; others run as ever.

    The gradients that a replay gives lie in the graph's own memory until the next one: an update may not sum over several.

    Args:
        model: the network as Fabric runs it.
        network: the same without Fabric.
    """

    def __init__(self, fabric: Fabric, model: nn.Module, network: nn.Module) -> None:
        self.precision = fabric.strategy.precision
        self.model, self.network = model, network
        self.shape: torch.Size | None = None
        self.graphed: Any = None

    def __call__(self, images: Tensor) -> Tensor:
        if self.shape is None:
            self.shape = images.shape
            self._capture(images)
        if self.graphed is None or images.shape != self.shape:
            return self.model(images)
        return self.precision.convert_output(self.graphed(self.precision.convert_input(images)))

    def _capture(self, images: Tensor) -> None:
        """The passes that warm up must leave no trace: running statistics are put back."""
        apart = Apart(self.network)  # graphs are put into a module's `forward`: not into the network's own
        before = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        example = self.precision.convert_input(images).clone()
        try:
            with self.precision.forward_context():
                torch.set_autocast_cache_enabled(False)  # what a cache holds dies with the pass that made it
                self.graphed = torch.cuda.make_graphed_callables(apart, (example,))
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            warnings.warn(f"no CUDA graph of this network, which trains launch by launch: {first}", stacklevel=3)
        finally:
            torch.set_autocast_cache_enabled(True)
            for buffer, value in before:
                buffer.copy_(value)


class Apart(nn.Module):
    """The network as the only part of a module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)
