"""The optimum of KL-regularised alignment over a finite set of candidates, and how good it is: exact, in log space."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.checks import check_values, describe, positive, refuse
from scorecraft.core.separable import in_working_precision

_LOWEST = -200.0
"""Of `log gamma`."""


class AlignedPolicy(NamedTuple):
    """What alignment would end in."""

    log_probabilities: Float[Tensor, "*prompts c"]
    log_normaliser: Float[Tensor, "*prompts"]
    """`log Z = log E_base e^(u / gamma)`."""
    kl: Float[Tensor, "*prompts"]
    """`KL(policy || base)` in nats."""


def optimal_policy(
    base: Float[Tensor, "*prompts c"],
    utility: Float[Tensor, "*prompts c"],
    gamma: float,
    *,
    where: Bool[Tensor, "*prompts c"] | None = None,
) -> AlignedPolicy:
    """`pi = pi_base e^(u / gamma) / Z`, which maximises `E_pi u - gamma KL(pi || pi_base)`.

    With `u = log p(good)` this is the base policy given that the answer is good, at `gamma = 1`.

    Args:
        base: `[..., c]`, log-probabilities of the candidates under the base policy, up to a constant per prompt; `-inf`
            is a candidate that it never gives.
        utility: `[..., c]`, finite.
        gamma: weight of the KL term, above 0; `u / gamma` may be thousands.
        where: bool `[..., c]`, the candidates there are.

    Raises:
        ValueError: values outside of these ranges, or a prompt without a candidate.

    Source: arXiv 2402.00742, the alignment objective and its optimum.
    """
    base, utility = _checked(base, utility, where)
    return _policy(base, utility, positive("gamma", gamma))


def gamma_for_kl(
    base: Float[Tensor, "*prompts c"],
    utility: Float[Tensor, "*prompts c"],
    target: float,
    *,
    where: Bool[Tensor, "*prompts c"] | None = None,
) -> float:
    """The `gamma` at which the optimum has a mean KL of `target` nats over the prompts, by bracketing `log gamma`.

    Utilities of different scale can be compared at the same KL only: a `gamma` of one says nothing about another.

    Args:
        base, utility, where: see `optimal_policy`.
        target: above 0 and below what `gamma -> 0` reaches, the mean of `-log P_base(best candidates)`.

    Raises:
        ValueError: a target that no `gamma` reaches; the line names the largest there is.
    """
    base, utility = _checked(base, utility, where)
    base, utility = base.double().log_softmax(dim=-1), utility.double()
    positive("target", target)
    there = base > -torch.inf
    top = utility.masked_fill(~there, -torch.inf).amax(dim=-1, keepdim=True)
    most = -base.masked_fill(~there | (utility < top), -torch.inf).logsumexp(dim=-1).mean().item()
    if target >= most:
        refuse("target", f"below {most:.6g} nats, which always taking a best candidate costs", target)

    from scipy.optimize import brentq

    def excess(log_gamma: float) -> float:
        return _policy(base, utility, math.exp(log_gamma)).kl.mean().item() - target

    low = high = 0.0
    while excess(low) < 0:
        low -= 2.0
        if low < _LOWEST:
            refuse("target", f"a KL that differences of utility this small reach (below {most:.6g} nats)", target)
    while excess(high) >= 0:
        high += 2.0
    found: Any = brentq(excess, low, high, xtol=1e-12)
    return math.exp(found)


def best_candidate(
    utility: Float[Tensor, "*prompts c"], where: Bool[Tensor, "*prompts c"] | None = None
) -> Int[Tensor, "*prompts"]:
    """Best of n: the index of the candidate with the largest utility, the first of equals.

    With one reward per prompt every increasing transform picks the same; sums of two and more do not.

    Args:
        utility: `[..., c]`, finite inside `where`.
        where: bool `[..., c]`, the candidates there are, at least one per prompt.
    """
    _, utility = _checked(torch.zeros_like(utility), utility, where)
    if where is not None:
        utility = utility.masked_fill(~where, -torch.inf)
    return utility.argmax(dim=-1)


def expected(policy: Float[Tensor, "*prompts c"], values: Float[Tensor, "*prompts c"]) -> Float[Tensor, "*prompts"]:
    """`sum_c pi_c v_c` of a policy given by log-probabilities, both `[..., c]`."""
    if policy.shape != values.shape:
        refuse("values", f"one per candidate, shape {tuple(policy.shape)}", describe(values))
    return (policy.exp() * values).sum(dim=-1)


def win_rate(
    policy: Float[Tensor, "*prompts c"], base: Float[Tensor, "*prompts c"], rewards: Float[Tensor, "*prompts c"]
) -> Float[Tensor, "*prompts"]:
    """`P(r(y) > r(y')) + P(r(y) = r(y')) / 2` for an answer `y` of the policy and `y'` of the base, per prompt.

    Args:
        policy, base: `[..., c]`, log-probabilities.
        rewards: `[..., c]`, finite.
    """
    policy, base, rewards = _both(policy, base, rewards)
    order = rewards.argsort(dim=-1)
    ordered, mass = rewards.gather(-1, order).contiguous(), base.exp().gather(-1, order)
    up_to = F.pad(mass.cumsum(dim=-1), (1, 0))
    below = up_to.gather(-1, torch.searchsorted(ordered, ordered))
    not_above = up_to.gather(-1, torch.searchsorted(ordered, ordered, right=True))
    return (policy.exp().gather(-1, order) * (below + not_above) / 2).sum(dim=-1)


def improvement(
    policy: Float[Tensor, "*prompts c"], base: Float[Tensor, "*prompts c"], rewards: Float[Tensor, "*prompts c"]
) -> Float[Tensor, "*prompts"]:
    """`(E_pi r - E_base r) / sd_base r` per prompt, 0 where the base's rewards do not differ.

    Args:
        policy, base: `[..., c]`, log-probabilities.
        rewards: `[..., c]`, finite.
    """
    policy, base, rewards = _both(policy, base, rewards)
    mean = expected(base, rewards)
    spread = expected(base, (rewards - mean.unsqueeze(-1)).square()).sqrt()
    gained = expected(policy, rewards) - mean
    return torch.where(spread > 0, gained / torch.where(spread > 0, spread, 1.0), 0.0)


def share_improved(improvements: Float[Tensor, "*prompts"], *, by: float = 0.5) -> Float[Tensor, ""]:
    """The share of prompts that gained at least `by` standard deviations."""
    return (improvements >= by).to(improvements.dtype).mean()


def good_in_all(
    policy: Float[Tensor, "*prompts c"],
    rewards: Float[Tensor, "*prompts c n"],
    reference: Float[Tensor, "*prompts n"],
) -> Float[Tensor, "*prompts"]:
    """`P(r_i > r_ref_i for every i)` of a policy's answer, per prompt.

    Args:
        policy: `[..., c]`, log-probabilities.
        rewards: `[..., c, n]`, of `n` properties.
        reference: `[..., n]`.
    """
    if rewards.shape[:-1] != policy.shape:
        refuse("rewards", f"rewards [..., c, n] of candidates {tuple(policy.shape)}", describe(rewards))
    if reference.shape != (*policy.shape[:-1], rewards.shape[-1]):
        refuse("reference", f"one per prompt and property, of rewards {tuple(rewards.shape)}", describe(reference))
    return expected(policy, (rewards > reference.unsqueeze(-2)).all(dim=-1).to(policy.dtype))


def _policy(base: Tensor, utility: Tensor, gamma: float) -> AlignedPolicy:
    there = base > -torch.inf
    top = utility.masked_fill(~there, -torch.inf).amax(dim=-1, keepdim=True)
    tilt = (utility - top) / gamma  # at most 0 wherever the base gives anything, so that nothing large cancels below
    joint = base + tilt
    normaliser = joint.logsumexp(dim=-1, keepdim=True)
    policy = joint - normaliser
    # log pi - log base is tilt - log Z.
    kl = torch.where(there, policy.exp() * (tilt - normaliser), 0.0).sum(dim=-1)
    return AlignedPolicy(policy, (normaliser + top / gamma).squeeze(-1), kl.clamp(min=0))


def _both(policy: Tensor, base: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two policies over the same candidates, and their rewards, in working precision."""
    policy, _ = _checked(policy, rewards, None, names=("policy", "rewards"))
    base, rewards = _checked(base, rewards, None, names=("base", "rewards"))
    return policy, base, rewards


def _checked(
    base: Tensor, utility: Tensor, where: Tensor | None, *, names: tuple[str, str] = ("base", "utility")
) -> tuple[Tensor, Tensor]:
    """Both in working precision, the base normalised over the candidates there are."""
    policy, values = names
    if not utility.is_floating_point() or utility.ndim < 1 or utility.shape[-1] == 0:
        refuse(values, "floating-point values [..., c] of at least one candidate", describe(utility))
    if base.shape != utility.shape or not base.is_floating_point():
        refuse(policy, f"log-probabilities of shape {tuple(utility.shape)}", describe(base))
    base, utility = in_working_precision(base), in_working_precision(utility)
    if where is not None:
        if where.shape != utility.shape or where.dtype != torch.bool:
            refuse("where", f"a bool tensor of shape {tuple(utility.shape)}", describe(where))
        base, utility = base.masked_fill(~where, -torch.inf), utility.masked_fill(~where, 0.0)
    check_values(values, "finite values only", lambda: torch.isfinite(utility), utility)
    check_values(policy, "log-probabilities that are not NaN and below +inf", lambda: base < torch.inf, base)
    total = base.logsumexp(dim=-1, keepdim=True)
    check_values(policy, "a possible candidate for every prompt", lambda: total > -torch.inf, total)
    return base - total, utility
