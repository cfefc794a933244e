"""Metrics by name, and what computes them."""
