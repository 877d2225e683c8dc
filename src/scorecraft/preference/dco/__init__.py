"""Direct Coverage Optimization: fine-tuning for pass@N, when one right answer among N samples is enough."""

from scorecraft.core.paper import Paper
from scorecraft.preference.dco.coverage import coverage_loss, coverage_weight, log_coverage_weight, pass_at_n
from scorecraft.preference.dco.estimates import (
    BlockEstimate,
    ConfidenceHistogram,
    CoverageEstimate,
    block_pass_at_k,
    confidence_histogram,
    ensemble_coverage,
    mean_pass_at_k,
    pass_at_k,
)
from scorecraft.preference.dco.filter import (
    CoverageBatchSampler,
    CoverageFilter,
    CoverageFilteredDataset,
    KeptBatch,
)
from scorecraft.preference.dco.loss import ApproximateCoverageLoss, DirectCoverageLoss
from scorecraft.preference.dco.optimum import optimal_coverage_distribution
from scorecraft.preference.dco.weights import (
    proof_log_probabilities,
    sampled_coverage_weight,
    whole_proof_weights,
)

__all__ = [
    "PAPER",
    "ApproximateCoverageLoss",
    "BlockEstimate",
    "ConfidenceHistogram",
    "CoverageBatchSampler",
    "CoverageEstimate",
    "CoverageFilter",
    "CoverageFilteredDataset",
    "DirectCoverageLoss",
    "KeptBatch",
    "block_pass_at_k",
    "confidence_histogram",
    "coverage_loss",
    "coverage_weight",
    "ensemble_coverage",
    "log_coverage_weight",
    "mean_pass_at_k",
    "optimal_coverage_distribution",
    "pass_at_k",
    "pass_at_n",
    "proof_log_probabilities",
    "sampled_coverage_weight",
    "whole_proof_weights",
]

PAPER = Paper(
    slug="dco",
    title="Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves Mathematical Reasoning",
    arxiv="2502.07154",
    date="2025-02-10",
    room="preference",
    kind="loss + example filter + estimator + theory",
    venue="NeurIPS 2025",
    api=(
        "scorecraft.preference.dco.DirectCoverageLoss",
        "scorecraft.preference.dco.ApproximateCoverageLoss",
        "scorecraft.preference.dco.coverage_loss",
        "scorecraft.preference.dco.coverage_weight",
        "scorecraft.preference.dco.log_coverage_weight",
        "scorecraft.preference.dco.sampled_coverage_weight",
        "scorecraft.preference.dco.whole_proof_weights",
        "scorecraft.preference.dco.proof_log_probabilities",
        "scorecraft.preference.dco.CoverageFilter",
        "scorecraft.preference.dco.CoverageBatchSampler",
        "scorecraft.preference.dco.CoverageFilteredDataset",
        "scorecraft.preference.dco.pass_at_n",
        "scorecraft.preference.dco.pass_at_k",
        "scorecraft.preference.dco.mean_pass_at_k",
        "scorecraft.preference.dco.block_pass_at_k",
        "scorecraft.preference.dco.ensemble_coverage",
        "scorecraft.preference.dco.optimal_coverage_distribution",
        "scorecraft.preference.dco.confidence_histogram",
    ),
    hosts=("TRL", "torchmetrics"),
)
