"""Proofs by z3: one file per statement; invariant, step, conclusion, one query each."""
