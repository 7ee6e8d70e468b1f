"""Adaptive layer norm: LayerNorm with modulation, and the gated residual before it."""
