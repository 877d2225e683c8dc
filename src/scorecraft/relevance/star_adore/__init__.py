"""STAR and ADORE: dense retrievers trained with static, then with dynamic hard negatives (Zhan et al. 2021)."""

from scorecraft.core.paper import Paper
from scorecraft.relevance.star_adore.adore import AdoreLoss, hit_rate, reciprocal_rank, with_missing_positives
from scorecraft.relevance.star_adore.errors import (
    list_overlap,
    ranking_errors,
    reciprocal_rank_of_errors,
    top_errors,
)
from scorecraft.relevance.star_adore.lamb import Lamb, decay_groups
from scorecraft.relevance.star_adore.mining import mine_hard_negatives, sample_hard_negatives, star_batch
from scorecraft.relevance.star_adore.relevant import RelevantDocuments
from scorecraft.relevance.star_adore.star import StarLoss
from scorecraft.relevance.star_adore.trainer import AdoreTrainer, detached_copy

__all__ = [
    "PAPER",
    "AdoreLoss",
    "AdoreTrainer",
    "Lamb",
    "RelevantDocuments",
    "StarLoss",
    "decay_groups",
    "detached_copy",
    "hit_rate",
    "list_overlap",
    "mine_hard_negatives",
    "ranking_errors",
    "reciprocal_rank",
    "reciprocal_rank_of_errors",
    "sample_hard_negatives",
    "star_batch",
    "top_errors",
    "with_missing_positives",
]

PAPER = Paper(
    slug="star_adore",
    title="Optimizing Dense Retrieval Model Training with Hard Negatives",
    arxiv="2104.08051",
    date="2021-04-16",
    room="relevance",
    kind="trainer + sampler + loss",
    authors="Zhan, Jingtao and Mao, Jiaxin and Liu, Yiqun and Guo, Jiafeng and Zhang, Min and Ma, Shaoping",
    venue="SIGIR 2021",
    api=(
        "scorecraft.relevance.star_adore.StarLoss",
        "scorecraft.relevance.star_adore.AdoreLoss",
        "scorecraft.relevance.star_adore.AdoreTrainer",
        "scorecraft.relevance.star_adore.RelevantDocuments",
        "scorecraft.relevance.star_adore.mine_hard_negatives",
        "scorecraft.relevance.star_adore.star_batch",
        "scorecraft.relevance.star_adore.with_missing_positives",
        "scorecraft.relevance.star_adore.ranking_errors",
        "scorecraft.relevance.star_adore.list_overlap",
        "scorecraft.relevance.star_adore.Lamb",
    ),
    hosts=("sentence-transformers", "faiss"),
)
