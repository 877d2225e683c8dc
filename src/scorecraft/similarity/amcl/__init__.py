"""Adaptive multi-head contrastive learning: several heads, a learned temperature per pair (Wang et al. 2023)."""

from scorecraft.core.paper import Paper
from scorecraft.similarity.amcl.barlow import barlow_loss, cross_correlation
from scorecraft.similarity.amcl.contrast import HardestMultiHeadContrastLoss, HeadPairs, MultiHeadContrastLoss
from scorecraft.similarity.amcl.heads import MultiHeadProjector
from scorecraft.similarity.amcl.likelihood import (
    PairLikelihood,
    omega,
    optimal_negative_temperature,
    optimal_positive_temperature,
)
from scorecraft.similarity.amcl.loss import AMCLLoss
from scorecraft.similarity.amcl.simsiam import simsiam_loss
from scorecraft.similarity.amcl.temperature import CorrelationTemperature, PairTemperature, TemperatureStatistics

__all__ = [
    "PAPER",
    "AMCLLoss",
    "CorrelationTemperature",
    "HardestMultiHeadContrastLoss",
    "HeadPairs",
    "MultiHeadContrastLoss",
    "MultiHeadProjector",
    "PairLikelihood",
    "PairTemperature",
    "TemperatureStatistics",
    "barlow_loss",
    "cross_correlation",
    "omega",
    "optimal_negative_temperature",
    "optimal_positive_temperature",
    "simsiam_loss",
]

PAPER = Paper(
    slug="amcl",
    title="Adaptive Multi-head Contrastive Learning",
    arxiv="2310.05615",
    date="2023-10-09",
    room="similarity",
    kind="loss + projection-head module + learned per-pair temperature",
    authors="Wang, Lei and Koniusz, Piotr and Gedeon, Tom and Zheng, Liang",
    venue="ECCV 2024",
    api=(
        "scorecraft.similarity.amcl.AMCLLoss",
        "scorecraft.similarity.amcl.MultiHeadProjector",
        "scorecraft.similarity.amcl.PairTemperature",
        "scorecraft.similarity.amcl.MultiHeadContrastLoss",
        "scorecraft.similarity.amcl.HardestMultiHeadContrastLoss",
    ),
)
