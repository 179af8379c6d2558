"""Neurons of other libraries as objects for ``--impl``, and the conventions in which they differ from the paper."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Convention:
    """A difference that is a choice of the library, with its smallest example: one neuron, theta = 1.

    ``spikes`` and ``v`` are the library's own, ``[T]``, and not the paper's.
    """

    name: str
    current: Sequence[float]
    spikes: Sequence[float]
    v: Sequence[float]
    leak: float = 1.0
    v0: float = 0.0
    dtype: torch.dtype = torch.float64
    v_dtype: torch.dtype = torch.float64
