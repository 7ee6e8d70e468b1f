"""Fused attention with RMS-norm of q and k, rotary embedding and a key mask."""
