"""The kinds of neuron that a row can name. An entry here is all that a new one needs: specs, runs, tables, figures look it up."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

import lmht

# Okabe and Ito's palette: distinct under every common colour blindness
BLUE, SKY, ORANGE, GREEN, RED, PINK, GREY = "#0072B2", "#56B4E9", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"


@dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
        title: its name in figures.
        make: a new activation, of levels L (an ANN's: Tq), steps T, threshold theta (an ANN's: QCFS's first scale).
        spiking: a neuron, with T steps and synaptic operations; else an ANN's activation.
        many_levels: L, or Tq, may be more than 1.
        color, marker: its look in figures.
    """

    title: str
    make: Callable[[int, int, float], nn.Module]
    spiking: bool = True
    many_levels: bool = True
    color: str = RED
    marker: str = "X"


KINDS = {
    "relu": Kind("ReLU", lambda L, T, theta: nn.ReLU(), spiking=False, many_levels=False, color=GREY, marker="P"),
    "qcfs": Kind("QCFS", lambda L, T, scale: lmht.QCFS(L, scale), spiking=False, color=GREEN, marker="^"),
    "if": Kind("IF", lambda L, T, theta: lmht.IF(T, theta=theta), many_levels=False, color=ORANGE, marker="o"),
    "lif": Kind("LIF", lambda L, T, theta: lmht.LIF(T, theta=theta), many_levels=False, color=PINK, marker="v"),
    # only the one-level baseline keeps the temporal chain: Eqs. 8-9 detach it
    "mht": Kind(
        "M-HT",
        lambda L, T, theta: lmht.MHT(L, T, theta=theta, temporal_gradient=False),
        color=SKY,
        marker="s",
    ),
    "lmht": Kind("LM-HT", lambda L, T, theta: lmht.LMHT(L, T, theta=theta), color=BLUE, marker="D"),
}


def is_ann(kind: str) -> bool:
    """Whether it is an ANN's activation; a table of the paper has kinds of others, too, which are none of these."""
    return kind in KINDS and not KINDS[kind].spiking
