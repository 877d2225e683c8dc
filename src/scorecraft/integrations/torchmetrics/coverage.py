"""torchmetrics: the unbiased pass@k of problems with any numbers of samples, with an interval over problems.

from scorecraft.integrations.torchmetrics.coverage import PassAtK

metric = PassAtK(ks=(1, 16, 64))
for problems in loader:
    metric.update(samples, correct)       # integers [problems]: how many were drawn, how many of them are right
metric.compute()                          # {"pass_at_1": ..., "pass_at_1_low": ..., "pass_at_1_high": ..., ...}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from scorecraft.core.checks import describe, positive_integer, refuse
from scorecraft.integrations.optional import require
from scorecraft.preference.dco import pass_at_k
from scorecraft.preference.dco.estimates import interval_of

require("torchmetrics", "metric-learning")

from torchmetrics import Metric  # noqa: E402


class PassAtK(Metric):
    """The mean over problems of `1 - C(n - c, k) / C(n, k)`, as `scorecraft.preference.dco.mean_pass_at_k`.

    `compute` returns `pass_at_<k>` for each `k`, and the ends of a Student t interval over problems as
    `pass_at_<k>_low` and `pass_at_<k>_high`; NaN before the first problem. Memory does not grow.

    Args:
        ks: the numbers of samples, different and at least 1.
        confidence: of the intervals, in (0, 1).
        **host: the host's own arguments (`sync_on_compute`, `process_group`, ...).

    Raises:
        ValueError: one line: no `k` or one twice, a `k` above the samples of a problem, more right ones than samples.

    Source: arXiv 2502.07154; Chen et al. 2021, arXiv 2107.03374, equation 1.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    totals: Tensor
    squares: Tensor
    problems: Tensor

    def __init__(self, ks: Sequence[int] = (1,), *, confidence: float = 0.95, **host: Any) -> None:
        super().__init__(**host)
        self.ks = tuple(positive_integer("ks", k) for k in ks)
        if not self.ks or len(set(self.ks)) != len(self.ks):
            refuse("ks", "one number of samples or more, all different", describe(ks))
        if not 0 < confidence < 1:
            refuse("confidence", "a number in (0, 1)", confidence)
        self.confidence = confidence
        zeros = torch.zeros(len(self.ks), dtype=torch.float64)
        self.add_state("totals", zeros, dist_reduce_fx="sum")
        self.add_state("squares", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("problems", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, samples: Int[Tensor, " m"], correct: Int[Tensor, " m"]) -> None:
        """Add problems by their numbers of samples and of right ones among them."""
        each = torch.stack([pass_at_k(samples, correct, k).flatten() for k in self.ks])
        self.totals = self.totals + each.sum(dim=1)
        self.squares = self.squares + each.square().sum(dim=1)
        self.problems = self.problems + each.shape[1]

    def compute(self) -> dict[str, Tensor]:
        """Means and intervals."""
        found: dict[str, Tensor] = {}
        for k, total, squares in zip(self.ks, self.totals.tolist(), self.squares.tolist(), strict=True):
            estimate = interval_of(total, squares, int(self.problems), confidence=self.confidence)
            for name, value in (("", estimate.mean), ("_low", estimate.low), ("_high", estimate.high)):
                found[f"pass_at_{k}{name}"] = self.totals.new_tensor(value)
        return found
