"""SpikingJelly 2: our neurons in its networks, its neurons in ours."""

from typing import Any

from spikingjelly.activation_based import base, functional, neuron
from torch import Tensor, nn

from lmht.neurons import Neuron


class ToSpikingJelly(nn.Module, base.StepModule):
    """One of our neurons for a SpikingJelly network in step mode ``m``: ``[T, N, ...] -> [T, N, ...]``, ``s(t) * theta``.

    It has no state, so ``functional.reset_net`` passes it by. Step mode ``s``, in which SpikingJelly's modules start, is refused
    at the call: the current of a step may need the spikes of later ones (T-GIM), so a neuron takes all T at once. (Inside a
    ``SeqToANNContainer`` time is folded into the batch as in our networks: there a neuron stands as it is.)

    Args:
        neuron: any of ours, of T steps.
        step_mode: ``s`` until ``functional.set_step_mode(network, "m")``, or ``m`` from the start.
    """

    def __init__(self, neuron: Neuron, step_mode: str = "s") -> None:
        super().__init__()
        self.neuron, self.step_mode = neuron, step_mode

    def forward(self, x_seq: Tensor) -> Tensor:
        """
        Raises:
            ValueError: step mode ``s``, or the first axis is not T.
        """
        if self.step_mode != "m":
            raise ValueError(
                f"{type(self.neuron).__name__} takes all T = {self.neuron.steps} time-steps at once, [T, N, ...]: its current may "
                "mix them; call spikingjelly's functional.set_step_mode(network, 'm'), and don't use per-step containers"
            )
        out: Tensor = self.neuron(x_seq, folded=False)
        return out


class FromSpikingJelly(Neuron):
    """A SpikingJelly neuron as an activation of our networks: ``lambda: FromSpikingJelly(IFNode(v_reset=None), steps=T)``.

    It emits what the node emits (``s(t)``, where ours emit ``s(t) * theta``), and starts from the node's reset value at every pass.
    Conversion and reparameterisation refuse it by name; operations are counted.

    Args:
        node: of ``spikingjelly.activation_based.neuron``; its step mode is set to ``m``.
        steps: ``T``.

    Raises:
        ValueError: it is no spiking neuron of SpikingJelly's.
    """

    def __init__(self, node: Any, steps: int) -> None:
        super().__init__(1, steps)
        if not isinstance(node, neuron.BaseNode):
            raise ValueError(f"{type(node).__name__} is no spiking neuron of spikingjelly.activation_based.neuron")
        functional.set_step_mode(node, "m")
        self.node = node

    def emit(self, x: Tensor) -> Tensor:
        functional.reset_net(self.node)
        out: Tensor = self.node(x)
        functional.reset_net(self.node)  # keeps no graph: the network can be copied
        return out
