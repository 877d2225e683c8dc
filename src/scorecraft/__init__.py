"""Losses, miners, metrics and studies for everything that is trained, filtered or judged by a score.

Names are imported when they are first used, so that `import scorecraft` itself costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scorecraft.core import (
        BradleyTerryLoss,
        Cosine,
        Dot,
        DPOLoss,
        InfoNCELoss,
        IPOLoss,
        ListNetLoss,
        MemoryQueue,
        NegativeDistance,
        NegativeSquaredDistance,
        Pairs,
        PairwiseLogisticLoss,
        SimPOLoss,
        SLiCLoss,
        across_ranks,
        citation,
        gradient_cached,
        in_batch,
        list_score_gradients,
        preference_gradients,
        remembering,
        score_gradients,
        tiled,
    )
    from scorecraft.preference.aft import (
        AFTLoss,
        AlignmentFineTuning,
        DetachedDPOLoss,
        PROLoss,
        RankedAFTLoss,
        RRHFLoss,
        assessment_accuracy,
        split_by_final_answer,
    )
    from scorecraft.preference.answer_log_probabilities import answer_log_probabilities
    from scorecraft.preference.dco import (
        ApproximateCoverageLoss,
        CoverageFilter,
        DirectCoverageLoss,
        coverage_weight,
        optimal_coverage_distribution,
        pass_at_k,
    )
    from scorecraft.preference.dpa_logic import LogicLoss, PreferenceStructure
    from scorecraft.preference.helpsteer2_preference import (
        MarginBradleyTerryLoss,
        MarginDPOLoss,
        MaskedRegressionLoss,
        ScaledBradleyTerryLoss,
        ScaledDPOLoss,
        extrapolate,
        extrapolate_checkpoint,
        leave_one_out_advantages,
    )
    from scorecraft.preference.r3 import (
        LengthIncentive,
        R3Reward,
        R3Scorer,
        RelevanceReward,
        RepetitionPenalty,
        regularized_relevance,
        relevance_test,
    )
    from scorecraft.preference.ranking_accuracy import (
        ScaledReferenceDPOLoss,
        diagnose_pairs,
        log_ratio,
        reward_accuracy,
    )
    from scorecraft.preference.reward_transform import (
        LogSigmoidReward,
        log_sigmoid_centred,
        log_sigmoid_sum,
        reference_reward,
    )
    from scorecraft.relevance.mw import MannWhitneyLoss, mann_whitney_loss, pooled_auc
    from scorecraft.relevance.sft_vs_cl import ContrastiveRerankingLoss, SupervisedRerankingLoss, UnifiedRerankingLoss
    from scorecraft.relevance.star_adore import AdoreLoss, AdoreTrainer, StarLoss
    from scorecraft.relevance.two_row_scoring import two_row_logits
    from scorecraft.relevance.unime_v2 import JointRerankingLoss, SoftLabelAlignmentLoss
    from scorecraft.similarity.amcl import AMCLLoss, MultiHeadProjector, PairTemperature
    from scorecraft.similarity.episodic_sampler import EpisodicBatchSampler, split_episode
    from scorecraft.similarity.groco import GroCoLoss, GroupOrderingLoss, group_ordering_loss
    from scorecraft.similarity.metrix import (
        GenericPairLoss,
        MetrixLoss,
        MetrixModelLoss,
        PairForm,
        ProxyAnchored,
        utilization,
    )
    from scorecraft.similarity.multi_similarity import (
        BinomialDevianceLoss,
        ContrastiveLoss,
        LiftedStructureLoss,
        MultiSimilarityLoss,
        MultiSimilarityMiner,
        NPairLoss,
        TripletLoss,
    )
    from scorecraft.similarity.pk_sampler import PKSampler
    from scorecraft.similarity.recall import recall_at_k
    from scorecraft.similarity.susana import EpisodeLoss, ICNNLoss, ProtoTripletLoss, icnn_score
    from scorecraft.similarity.tcm import ThresholdConsistentMarginLoss, opis
    from scorecraft.similarity.unpg import ArcFaceHead, CosFaceHead, MagFaceHead, UNPGLoss

__version__ = "0.1.0"

__all__ = [
    "AFTLoss",
    "AMCLLoss",
    "AdoreLoss",
    "AdoreTrainer",
    "AlignmentFineTuning",
    "ApproximateCoverageLoss",
    "ArcFaceHead",
    "BinomialDevianceLoss",
    "BradleyTerryLoss",
    "ContrastiveLoss",
    "ContrastiveRerankingLoss",
    "CosFaceHead",
    "Cosine",
    "CoverageFilter",
    "DPOLoss",
    "DetachedDPOLoss",
    "DirectCoverageLoss",
    "Dot",
    "EpisodeLoss",
    "EpisodicBatchSampler",
    "GenericPairLoss",
    "GroCoLoss",
    "GroupOrderingLoss",
    "ICNNLoss",
    "IPOLoss",
    "InfoNCELoss",
    "JointRerankingLoss",
    "LengthIncentive",
    "LiftedStructureLoss",
    "ListNetLoss",
    "LogSigmoidReward",
    "LogicLoss",
    "MagFaceHead",
    "MannWhitneyLoss",
    "MarginBradleyTerryLoss",
    "MarginDPOLoss",
    "MaskedRegressionLoss",
    "MemoryQueue",
    "MetrixLoss",
    "MetrixModelLoss",
    "MultiHeadProjector",
    "MultiSimilarityLoss",
    "MultiSimilarityMiner",
    "NPairLoss",
    "NegativeDistance",
    "NegativeSquaredDistance",
    "PKSampler",
    "PROLoss",
    "PairForm",
    "PairTemperature",
    "Pairs",
    "PairwiseLogisticLoss",
    "PreferenceStructure",
    "ProtoTripletLoss",
    "ProxyAnchored",
    "R3Reward",
    "R3Scorer",
    "RRHFLoss",
    "RankedAFTLoss",
    "RelevanceReward",
    "RepetitionPenalty",
    "SLiCLoss",
    "ScaledBradleyTerryLoss",
    "ScaledDPOLoss",
    "ScaledReferenceDPOLoss",
    "SimPOLoss",
    "SoftLabelAlignmentLoss",
    "StarLoss",
    "SupervisedRerankingLoss",
    "ThresholdConsistentMarginLoss",
    "TripletLoss",
    "UNPGLoss",
    "UnifiedRerankingLoss",
    "__version__",
    "across_ranks",
    "answer_log_probabilities",
    "assessment_accuracy",
    "citation",
    "coverage_weight",
    "diagnose_pairs",
    "extrapolate",
    "extrapolate_checkpoint",
    "gradient_cached",
    "group_ordering_loss",
    "icnn_score",
    "in_batch",
    "leave_one_out_advantages",
    "list_score_gradients",
    "log_ratio",
    "log_sigmoid_centred",
    "log_sigmoid_sum",
    "mann_whitney_loss",
    "opis",
    "optimal_coverage_distribution",
    "pass_at_k",
    "pooled_auc",
    "preference_gradients",
    "recall_at_k",
    "reference_reward",
    "regularized_relevance",
    "relevance_test",
    "remembering",
    "reward_accuracy",
    "score_gradients",
    "split_by_final_answer",
    "split_episode",
    "tiled",
    "two_row_logits",
    "utilization",
]

_HOMES = {
    "scorecraft.similarity.amcl": ("AMCLLoss", "MultiHeadProjector", "PairTemperature"),
    "scorecraft.core": (
        "BradleyTerryLoss",
        "Cosine",
        "DPOLoss",
        "Dot",
        "IPOLoss",
        "InfoNCELoss",
        "ListNetLoss",
        "MemoryQueue",
        "NegativeDistance",
        "NegativeSquaredDistance",
        "Pairs",
        "PairwiseLogisticLoss",
        "SLiCLoss",
        "SimPOLoss",
        "across_ranks",
        "citation",
        "gradient_cached",
        "in_batch",
        "list_score_gradients",
        "preference_gradients",
        "remembering",
        "score_gradients",
        "tiled",
    ),
    "scorecraft.preference.aft": (
        "AFTLoss",
        "AlignmentFineTuning",
        "DetachedDPOLoss",
        "PROLoss",
        "RRHFLoss",
        "RankedAFTLoss",
        "assessment_accuracy",
        "split_by_final_answer",
    ),
    "scorecraft.preference.answer_log_probabilities": ("answer_log_probabilities",),
    "scorecraft.preference.dco": (
        "ApproximateCoverageLoss",
        "CoverageFilter",
        "DirectCoverageLoss",
        "coverage_weight",
        "optimal_coverage_distribution",
        "pass_at_k",
    ),
    "scorecraft.preference.dpa_logic": ("LogicLoss", "PreferenceStructure"),
    "scorecraft.preference.helpsteer2_preference": (
        "MarginBradleyTerryLoss",
        "MarginDPOLoss",
        "MaskedRegressionLoss",
        "ScaledBradleyTerryLoss",
        "ScaledDPOLoss",
        "extrapolate",
        "extrapolate_checkpoint",
        "leave_one_out_advantages",
    ),
    "scorecraft.preference.ranking_accuracy": (
        "ScaledReferenceDPOLoss",
        "diagnose_pairs",
        "log_ratio",
        "reward_accuracy",
    ),
    "scorecraft.preference.r3": (
        "LengthIncentive",
        "R3Reward",
        "R3Scorer",
        "RelevanceReward",
        "RepetitionPenalty",
        "regularized_relevance",
        "relevance_test",
    ),
    "scorecraft.preference.reward_transform": (
        "LogSigmoidReward",
        "log_sigmoid_centred",
        "log_sigmoid_sum",
        "reference_reward",
    ),
    "scorecraft.relevance.mw": (
        "MannWhitneyLoss",
        "mann_whitney_loss",
        "pooled_auc",
    ),
    "scorecraft.relevance.sft_vs_cl": (
        "ContrastiveRerankingLoss",
        "SupervisedRerankingLoss",
        "UnifiedRerankingLoss",
    ),
    "scorecraft.relevance.star_adore": (
        "AdoreLoss",
        "AdoreTrainer",
        "StarLoss",
    ),
    "scorecraft.relevance.two_row_scoring": ("two_row_logits",),
    "scorecraft.relevance.unime_v2": (
        "JointRerankingLoss",
        "SoftLabelAlignmentLoss",
    ),
    "scorecraft.similarity.groco": ("GroCoLoss", "GroupOrderingLoss", "group_ordering_loss"),
    "scorecraft.similarity.metrix": (
        "GenericPairLoss",
        "MetrixLoss",
        "MetrixModelLoss",
        "PairForm",
        "ProxyAnchored",
        "utilization",
    ),
    "scorecraft.similarity.susana": ("EpisodeLoss", "ICNNLoss", "ProtoTripletLoss", "icnn_score"),
    "scorecraft.similarity.episodic_sampler": ("EpisodicBatchSampler", "split_episode"),
    "scorecraft.similarity.multi_similarity": (
        "BinomialDevianceLoss",
        "ContrastiveLoss",
        "LiftedStructureLoss",
        "MultiSimilarityLoss",
        "MultiSimilarityMiner",
        "NPairLoss",
        "TripletLoss",
    ),
    "scorecraft.similarity.pk_sampler": ("PKSampler",),
    "scorecraft.similarity.recall": ("recall_at_k",),
    "scorecraft.similarity.tcm": ("ThresholdConsistentMarginLoss", "opis"),
    "scorecraft.similarity.unpg": ("ArcFaceHead", "CosFaceHead", "MagFaceHead", "UNPGLoss"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'scorecraft' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
