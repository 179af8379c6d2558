"""Neurons that ``theorems/`` must accept or reject."""
