"""UniME-V2: hard negatives and soft labels from a judge, and a re-ranker trained on them (Gu et al. 2025)."""

from scorecraft.core.paper import Paper
from scorecraft.relevance.unime_v2.mining import (
    JudgedNegatives,
    Pool,
    candidate_pool,
    cyclic_positions,
    first_occurrences,
    judge_threshold,
    judged_negatives,
    passes_judge,
)
from scorecraft.relevance.unime_v2.positions import draw_positions, released_position_law, uniform_position_law
from scorecraft.relevance.unime_v2.reranker import (
    Answer,
    JointRerankingLoss,
    RerankingPrompts,
    answer_cross_entropy,
    chosen_first,
    index_token_scores,
    parse_answer,
)
from scorecraft.relevance.unime_v2.soft_labels import SoftLabelAlignmentLoss, soft_label_weights

__all__ = [
    "PAPER",
    "Answer",
    "JointRerankingLoss",
    "JudgedNegatives",
    "Pool",
    "RerankingPrompts",
    "SoftLabelAlignmentLoss",
    "answer_cross_entropy",
    "candidate_pool",
    "chosen_first",
    "cyclic_positions",
    "draw_positions",
    "first_occurrences",
    "index_token_scores",
    "judge_threshold",
    "judged_negatives",
    "parse_answer",
    "passes_judge",
    "released_position_law",
    "soft_label_weights",
    "uniform_position_law",
]

PAPER = Paper(
    slug="unime_v2",
    title="UniME-V2: MLLM-as-a-Judge for Universal Multimodal Embedding Learning",
    arxiv="2510.13515",
    date="2025-10-15",
    room="relevance",
    kind="miner + loss + reranker trainer",
    authors=(
        "Gu, Tiancheng and Yang, Kaicheng and Zhang, Kaichen and An, Xiang and Feng, Ziyong and Zhang, Yueyi and"
        " Cai, Weidong and Deng, Jiankang and Bing, Lidong"
    ),
    venue="AAAI 2026",
    api=(
        "scorecraft.relevance.unime_v2.SoftLabelAlignmentLoss",
        "scorecraft.relevance.unime_v2.soft_label_weights",
        "scorecraft.relevance.unime_v2.candidate_pool",
        "scorecraft.relevance.unime_v2.judged_negatives",
        "scorecraft.relevance.unime_v2.cyclic_positions",
        "scorecraft.relevance.unime_v2.JointRerankingLoss",
        "scorecraft.relevance.unime_v2.RerankingPrompts",
        "scorecraft.relevance.unime_v2.index_token_scores",
        "scorecraft.relevance.unime_v2.released_position_law",
    ),
    hosts=("sentence-transformers", "transformers"),
)
