"""SFT or contrast for re-rankers: weight and direction of the gradient taken apart (arXiv 2510.14824)."""

from scorecraft.core.paper import Paper
from scorecraft.relevance.sft_vs_cl.chunked import ChunkedReranking, chunked_reranking
from scorecraft.relevance.sft_vs_cl.full_vocabulary import full_vocabulary_loss
from scorecraft.relevance.sft_vs_cl.losses import (
    ContrastiveRerankingLoss,
    SupervisedRerankingLoss,
    UnifiedRerankingLoss,
)
from scorecraft.relevance.sft_vs_cl.probes import LabelRows, WeightSummary, direction_cosine, weight_summary
from scorecraft.relevance.sft_vs_cl.weights import direction_score, first_is_relevant, reranking_weights

__all__ = [
    "PAPER",
    "ChunkedReranking",
    "ContrastiveRerankingLoss",
    "LabelRows",
    "SupervisedRerankingLoss",
    "UnifiedRerankingLoss",
    "WeightSummary",
    "chunked_reranking",
    "direction_cosine",
    "direction_score",
    "first_is_relevant",
    "full_vocabulary_loss",
    "reranking_weights",
    "weight_summary",
]

PAPER = Paper(
    slug="sft_vs_cl",
    title="Supervised Fine-Tuning or Contrastive Learning? Towards Better Multimodal LLM Reranking",
    arxiv="2510.14824",
    date="2025-10-16",
    room="relevance",
    kind="losses + gradient analysis framework + scorer",
    venue="ICLR 2026",
    api=(
        "scorecraft.relevance.sft_vs_cl.UnifiedRerankingLoss",
        "scorecraft.relevance.sft_vs_cl.SupervisedRerankingLoss",
        "scorecraft.relevance.sft_vs_cl.ContrastiveRerankingLoss",
        "scorecraft.relevance.sft_vs_cl.reranking_weights",
        "scorecraft.relevance.sft_vs_cl.direction_score",
        "scorecraft.relevance.sft_vs_cl.first_is_relevant",
        "scorecraft.relevance.sft_vs_cl.chunked_reranking",
        "scorecraft.relevance.sft_vs_cl.full_vocabulary_loss",
        "scorecraft.relevance.sft_vs_cl.weight_summary",
        "scorecraft.relevance.sft_vs_cl.direction_cosine",
        "scorecraft.relevance.sft_vs_cl.LabelRows",
        "scorecraft.relevance.two_row_scoring.two_row_logits",
        "scorecraft.relevance.two_row_scoring.grouped_logits",
        "scorecraft.relevance.two_row_scoring.answer_positions",
        "scorecraft.relevance.two_row_scoring.token_rows",
        "scorecraft.relevance.two_row_scoring.label_token",
    ),
    hosts=("sentence-transformers",),
)
