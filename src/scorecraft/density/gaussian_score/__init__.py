"""Exact scores of Gaussians, of their mixtures and of point sets, and the trajectories that start from them."""

from scorecraft.density.gaussian_score.gaussian import Gaussian
from scorecraft.density.gaussian_score.mixture import GaussianMixture, PointMixture
from scorecraft.density.gaussian_score.score_agreement import Agreement, agreement, explained_variance
from scorecraft.density.gaussian_score.statistics import GaussianStatistics
from scorecraft.density.gaussian_score.teleportation import Teleported, teleport

__all__ = [
    "Agreement",
    "Gaussian",
    "GaussianMixture",
    "GaussianStatistics",
    "PointMixture",
    "Teleported",
    "agreement",
    "explained_variance",
    "teleport",
]
