"""torchmetrics: the metrics of this library as `torchmetrics.Metric`, one module per family."""

from scorecraft.integrations.torchmetrics.relevance import PerQueryAUC, PooledAUC, StreamingAUC
from scorecraft.integrations.torchmetrics.similarity import ICNN, OPIS, FalseAcceptReject, RecallAtK

__all__ = ["ICNN", "OPIS", "FalseAcceptReject", "PerQueryAUC", "PooledAUC", "RecallAtK", "StreamingAUC"]
