"""AFT: right answers above wrong ones, without pushing the wrong ones down for ever (Wang et al. 2023)."""

from scorecraft.core.paper import Paper
from scorecraft.preference.aft.answers import (
    AnswerSet,
    boxed_answer,
    canonical,
    distinct_answers,
    final_answer,
    gsm8k_answer,
    split_by_final_answer,
)
from scorecraft.preference.aft.assessment import (
    GroupPerplexities,
    assessment_accuracy,
    group_perplexities,
    pearson_correlation,
    perplexity,
)
from scorecraft.preference.aft.constraints import Constrained
from scorecraft.preference.aft.losses import (
    AFTLoss,
    RankedAFTLoss,
    aft_losses,
    mean_log_probabilities,
    ranked_aft_losses,
    relevance_of_ranks,
)
from scorecraft.preference.aft.objective import AlignmentFineTuning
from scorecraft.preference.aft.other_rankings import DetachedDPOLoss, PROLoss, RRHFLoss

__all__ = [
    "PAPER",
    "AFTLoss",
    "AlignmentFineTuning",
    "AnswerSet",
    "Constrained",
    "DetachedDPOLoss",
    "GroupPerplexities",
    "PROLoss",
    "RRHFLoss",
    "RankedAFTLoss",
    "aft_losses",
    "assessment_accuracy",
    "boxed_answer",
    "canonical",
    "distinct_answers",
    "final_answer",
    "group_perplexities",
    "gsm8k_answer",
    "mean_log_probabilities",
    "pearson_correlation",
    "perplexity",
    "ranked_aft_losses",
    "relevance_of_ranks",
    "split_by_final_answer",
]

PAPER = Paper(
    slug="aft",
    title="Making Large Language Models Better Reasoners with Alignment",
    arxiv="2309.02144",
    date="2023-09-05",
    room="preference",
    kind="loss (pair/set/list) + metric + procedure",
    authors=(
        "Wang, Peiyi and Li, Lei and Chen, Liang and Song, Feifan and Lin, Binghuai and Cao, Yunbo and Liu, Tianyu and"
        " Sui, Zhifang"
    ),
    api=(
        "scorecraft.preference.aft.AFTLoss",
        "scorecraft.preference.aft.RankedAFTLoss",
        "scorecraft.preference.aft.RRHFLoss",
        "scorecraft.preference.aft.PROLoss",
        "scorecraft.preference.aft.DetachedDPOLoss",
        "scorecraft.preference.aft.AlignmentFineTuning",
        "scorecraft.preference.aft.aft_losses",
        "scorecraft.preference.aft.ranked_aft_losses",
        "scorecraft.preference.aft.relevance_of_ranks",
        "scorecraft.preference.aft.assessment_accuracy",
        "scorecraft.preference.aft.group_perplexities",
        "scorecraft.preference.aft.pearson_correlation",
        "scorecraft.preference.aft.distinct_answers",
        "scorecraft.preference.aft.split_by_final_answer",
        "scorecraft.preference.aft.final_answer",
    ),
    hosts=("transformers",),
)
