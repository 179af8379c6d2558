"""A batch's passes as a CUDA graph: on small images a GPU waits for launches, not for arithmetic."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

Passes = Callable[[Tensor, Tensor], Tensor]
WARM_UP = 3  # batches: kernels are built, and libraries choose theirs


class Replayed:
    """Forward and backward pass of training batches: captured on the first one, replayed on each that has its shape.

    A batch of another shape is launched as ever. Gradients do not sum over several batches.

    Args:
        passes: of a batch (images, labels); gives the loss, and gradients to the network's parameters.
        network: whose gradients and running statistics the passes write.
    """

    def __init__(self, passes: Passes, network: nn.Module) -> None:
        self.passes, self.network, self.parameters = passes, network, list(network.parameters())
        self.graph: torch.cuda.CUDAGraph | None = None
        self.captured: tuple[Tensor, Tensor] | None = None
        self.gradients: list[Tensor | None] = []

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.captured is None:
            self.captured = images.clone(), labels.clone()
            self._capture()
        places = self.captured
        if self.graph is None or any(a.shape != b.shape for a, b in zip(places, (images, labels), strict=True)):
            return self.passes(images, labels)
        for place, one in zip(places, (images, labels), strict=True):
            place.copy_(one, non_blocking=True)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient  # which the optimiser's zero_grad takes away
        self.graph.replay()
        return self.loss

    def _capture(self) -> None:
        """The batches that warm up leave no trace: running statistics are put back, and gradients are dropped."""
        assert self.captured is not None
        before = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for number in range(WARM_UP):
                    if number == WARM_UP - 1:
                        forbid_waiting()
                    self.network.zero_grad()
                    self.passes(*self.captured)
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            text = (
                "no CUDA graph of this network, which trains launch by launch: something in it asks the GPU for a value"
            )
            warnings.warn(text, stacklevel=3)
            return
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.current_stream().wait_stream(stream)
            self.network.zero_grad()
            for buffer, value in before:
                buffer.copy_(value)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.passes(*self.captured)
        self.gradients = [parameter.grad for parameter in self.parameters]


def forbid_waiting() -> None:
    """From here on an error for whatever waits for the GPU's answer, and thus can't be captured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls this a prototype
        torch.cuda.set_sync_debug_mode("error")
