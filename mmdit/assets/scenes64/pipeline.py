"""Tells diffusers where the class of this folder is: in the package multimodal-dit, which must be installed."""

from mmdit import MultimodalDiTPipeline

__all__ = ["MultimodalDiTPipeline"]
