"""LM-HT SNN: multi-hierarchical threshold neurons with learnable temporal-global information (NeurIPS 2024)."""

from lmht.neurons import IF, LIF, LMHT, MHT, QCFS
from lmht.tgim import FixedTGIM, FreeTGIM, SigmoidTGIM

__all__ = ["IF", "LIF", "LMHT", "MHT", "QCFS", "FixedTGIM", "FreeTGIM", "SigmoidTGIM"]
__version__ = "0.1.0"
