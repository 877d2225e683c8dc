"""torchmetrics: the metrics of this library as `torchmetrics.Metric`, one module per family."""

from scorecraft.integrations.torchmetrics.similarity import ICNN, OPIS, FalseAcceptReject, RecallAtK

__all__ = ["ICNN", "OPIS", "FalseAcceptReject", "RecallAtK"]
