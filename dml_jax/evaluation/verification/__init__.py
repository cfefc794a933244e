"""Verification: error rates at a threshold of the distance, over all pairs."""

from dml_jax.evaluation.verification.pairs import Pairs, pairs_of
from dml_jax.evaluation.verification.roc import Roc, Verification, roc_curve, verify

__all__ = ["Pairs", "Roc", "Verification", "pairs_of", "roc_curve", "verify"]
