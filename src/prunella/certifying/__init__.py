"""Prove that the pruned model computes what the masked one does."""

from prunella.certifying.certifying import Certificate, certify, compare

__all__ = ["Certificate", "certify", "compare"]
