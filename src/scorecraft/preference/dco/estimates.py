"""pass@N from samples: unbiased per problem, by blocks, of several models together; and how confident answers are."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.core.checks import check_values, describe, positive_integer, refuse


class CoverageEstimate(NamedTuple):
    """pass@k of a set of problems."""

    mean: float
    standard_error: float
    """Of the mean; NaN where one number gives none."""
    low: float
    """The lower end of the interval, in [0, 1]."""
    high: float


class BlockEstimate(NamedTuple):
    """pass@k of a set of problems, by blocks of samples."""

    mean: float
    standard_error: float
    """Over blocks: from one drawing of `k` samples to the next, on these very problems; NaN for a single block."""
    blocks: int


class ConfidenceHistogram(NamedTuple):
    """How the probabilities of answers are spread."""

    edges: Float[Tensor, " b1"]
    """`[bins + 1]`, from 0 to 1."""
    counts: Int[Tensor, " b"]
    right: Int[Tensor, " b"] | None
    """How many of each bin are right."""
    mean: float
    """The mean confidence."""


def pass_at_k(samples: Int[Tensor, "..."], correct: Int[Tensor, "..."], k: int) -> Float[Tensor, "..."]:
    """`1 - C(n - c, k) / C(n, k)`: the chance that `k` of `n` samples, `c` of them right, hold a right one.

    Unbiased for `1 - (1 - p)^k` at any `n >= k`. In the form of a product, `1 - prod_{i = n-c+1..n} (1 - k / i)`, and 1
    where fewer than `k` samples are wrong.

    Args:
        samples: int `n` of each problem, at least `k`; the numbers may differ.
        correct: int `c` of each problem, at most `n`.
        k: at least 1.

    Returns:
        One estimate per problem, float64; their mean is the pass@k of the set.

    Raises:
        ValueError: one line: `k` below 1 or above an `n`, a `c` above its `n`.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    n, c = checked_counts(samples, correct)
    positive_integer("k", k)
    check_values("k", f"at most the samples of every problem, k = {k}", lambda: n >= k, n)
    # prod (1 - k / i) over i in (n - c, n] as a difference of sums of logarithms from i = k + 1 on.
    last = int(n.max())
    i = torch.arange(last + 1, dtype=torch.float64, device=n.device)
    terms = torch.where(i > k, torch.log1p(-k / i.clamp(min=k + 1)), 0.0)
    sums = terms.cumsum(dim=0)
    wrong = n - c
    missed = (sums[n] - sums[wrong.clamp(min=k)]).exp()
    return torch.where(wrong < k, 1.0, 1 - missed)


def mean_pass_at_k(
    samples: Int[Tensor, " m"], correct: Int[Tensor, " m"], k: int, *, confidence: float = 0.95
) -> CoverageEstimate:
    """The mean of `pass_at_k` over problems, with a Student t interval over problems.

    The interval is about other problems of the kind: their spread and the noise of the samples are both in it.

    Args:
        samples: int `[m]`, `n` of each problem.
        correct: int `[m]`, `c` of each problem.
        k: at least 1, at most every `n`.
        confidence: in (0, 1).

    Raises:
        ValueError: one line naming the argument, what was expected and what came.
    """
    if not 0 < confidence < 1:
        refuse("confidence", "a number in (0, 1)", confidence)
    each = pass_at_k(samples, correct, k)
    return interval_of(each.sum().item(), each.square().sum().item(), each.numel(), confidence=confidence)


def interval_of(total: float, squares: float, count: int, *, confidence: float = 0.95) -> CoverageEstimate:
    """The t interval of a mean from the sum of `count` numbers in [0, 1] and the sum of their squares."""
    from scipy import stats

    if not count:
        return CoverageEstimate(math.nan, math.nan, math.nan, math.nan)
    mean = total / count
    if count == 1:
        return CoverageEstimate(mean, math.nan, 0.0, 1.0)
    error = math.sqrt(max(squares - count * mean**2, 0.0) / (count - 1) / count)
    reach = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    return CoverageEstimate(mean, error, max(mean - reach, 0.0), min(mean + reach, 1.0))


def block_pass_at_k(right: Bool[Tensor, "m n"], k: int) -> BlockEstimate:
    """pass@k by `n // k` disjoint blocks of consecutive samples: the share of problems with a right one in the block.

    The published evaluation. Its expectation is that of the unbiased estimate, its variance is larger.

    Args:
        right: bool `[m, n]`, whether each sample of each problem is right.
        k: at least 1, at most `n`; the last `n % k` samples are left out.

    Raises:
        ValueError: one line: no matrix of truth values, `k` above `n`.

    Source: the notebook of allanraventos/refine, with the standard deviation over `blocks - 1`.
    """
    if right.ndim != 2 or right.dtype != torch.bool or right.numel() == 0:
        refuse("right", "a bool matrix of problems and samples", describe(right))
    positive_integer("k", k)
    blocks = right.shape[1] // k
    if not blocks:
        refuse("k", f"at most the {right.shape[1]} samples of each problem", k)
    shares = right[:, : blocks * k].unflatten(1, (blocks, k)).any(dim=2).double().mean(dim=0)
    error = shares.std().item() / math.sqrt(blocks) if blocks > 1 else math.nan
    return BlockEstimate(shares.mean().item(), error, blocks)


def ensemble_coverage(coverages: Float[Tensor, "e ..."] | Bool[Tensor, "e ..."]) -> Float[Tensor, "..."]:
    """`1 - prod_e (1 - coverage_e)`: the chance that one of several models, sampled on their own, is right.

    Of truth values (the problem was solved by the model) it is their union. Models trained for different budgets
    complement each other: this is how much.

    Args:
        coverages: `[e, ...]`, one row per model: bool, or pass@k of each problem in [0, 1].

    Returns:
        The coverage of each problem, float64; the mean is that of the ensemble.

    Raises:
        ValueError: one line: no models, or values outside [0, 1].

    Source: arXiv 2502.07154, section 4.3 (the ensemble over N_eff).
    """
    if coverages.ndim < 1 or not len(coverages) or not (coverages.is_floating_point() or coverages.dtype == torch.bool):
        refuse("coverages", "truth values or probabilities, one row per model", describe(coverages))
    values = coverages.double()
    check_values("coverages", "values in [0, 1]", lambda: (values >= 0) & (values <= 1), values)
    return 1 - (1 - values).prod(dim=0)


def confidence_histogram(
    log_probabilities: Float[Tensor, " m"], right: Bool[Tensor, " m"] | None = None, *, bins: int = 20
) -> ConfidenceHistogram:
    """The histogram of `p` over (greedy) answers: a model that is trained for many samples must not pile up at 1.

    Args:
        log_probabilities: `log p <= 0` of the answer of each problem.
        right: bool `[m]`, whether it is right.
        bins: equal ones from 0 to 1.

    Raises:
        ValueError: one line naming the argument, what was expected and what came.

    Source: arXiv 2502.07154, figure 1.
    """
    positive_integer("bins", bins)
    if log_probabilities.ndim != 1 or not log_probabilities.is_floating_point() or not len(log_probabilities):
        refuse("log_probabilities", "floating-point values [m], m >= 1", describe(log_probabilities))
    below = lambda: log_probabilities <= 0  # noqa: E731
    check_values("log_probabilities", "log-probabilities <= 0", below, log_probabilities)
    if right is not None and (right.shape != log_probabilities.shape or right.dtype != torch.bool):
        refuse("right", f"a truth value per answer, shape {tuple(log_probabilities.shape)}", describe(right))
    p = log_probabilities.detach().double().exp()
    place = (p * bins).long().clamp(max=bins - 1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=p.device)
    among = None if right is None else place[right].bincount(minlength=bins)
    return ConfidenceHistogram(edges, place.bincount(minlength=bins), among, p.mean().item())


def checked_counts(samples: Tensor, correct: Tensor) -> tuple[Int[Tensor, "..."], Int[Tensor, "..."]]:
    """`n` and `c` of problems as int64.

    Raises:
        ValueError: one line: no integers, shapes that differ, `c` outside `[0, n]`, no problem.
    """
    for name, values in (("samples", samples), ("correct", correct)):
        if not isinstance(values, Tensor) or values.is_floating_point() or values.dtype == torch.bool:
            refuse(name, "integer counts", describe(values))
    if correct.shape != samples.shape or not samples.numel():
        refuse("correct", f"a count per problem, shape {tuple(samples.shape)}", describe(correct))
    n, c = samples.long(), correct.long()
    check_values("samples", "at least one sample of every problem", lambda: n >= 1, n)
    check_values("correct", "counts from 0 to the number of samples", lambda: (c >= 0) & (c <= n), c)
    return n, c
