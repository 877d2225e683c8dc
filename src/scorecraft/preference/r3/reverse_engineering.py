"""Reverse reward engineering: a white-box proxy is right where a strong reward rises along with it during training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scorecraft.core.checks import finite, natural, refuse
from scorecraft.core.files import write_atomically


class Monotonicity(NamedTuple):
    """How well the gold reward follows the proxy over checkpoints."""

    spearman: float
    """Rank correlation in [-1, 1], average ranks for ties; NaN where one of the two does not vary."""
    p_value: float
    checkpoints: int


def monotonicity(proxy: Sequence[float], gold: Sequence[float]) -> Monotonicity:
    """Spearman's rank correlation of two rewards over checkpoints.

    Args:
        proxy: mean reward of validation rollouts by the reward that is trained with, one per checkpoint.
        gold: by a strong preference model, of the same rollouts.

    Raises:
        ValueError: fewer than two checkpoints, another number of gold rewards, or values that are not finite.

    Source: arXiv 2402.03469, reverse reward engineering.
    """
    if len(proxy) != len(gold):
        refuse("gold", f"{len(proxy)} rewards, one per checkpoint", len(gold))
    if len(proxy) < 2:
        refuse("proxy", "at least two checkpoints", len(proxy))
    ours, theirs = [finite("proxy", value) for value in proxy], [finite("gold", value) for value in gold]
    if len(set(ours)) == 1 or len(set(theirs)) == 1:
        return Monotonicity(math.nan, math.nan, len(ours))
    from scipy.stats import spearmanr

    found: Any = spearmanr(ours, theirs)
    return Monotonicity(float(found.statistic), float(found.pvalue), len(ours))


class CheckpointRewards:
    """Mean proxy and gold reward of every checkpoint, kept in a file where there is one.

    Args:
        path: JSON, one line per checkpoint, read when it is there, so that a continued training goes on; written whole.
            None keeps it in memory.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._rewards: dict[int, tuple[float, float]] = {}
        if self.path is not None and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    self._rewards[row["step"]] = row["proxy"], row["gold"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"cannot read {self.path} ({error!r}): delete it to start anew") from error

    def record(self, step: int, proxy: Sequence[float], gold: Sequence[float]) -> None:
        """Keep the means of a checkpoint's rewards; a step that comes again replaces what was there.

        Args:
            step: of the training.
            proxy, gold: of the same rollouts, at least one, finite.
        """
        natural("step", step)
        if not proxy or len(proxy) != len(gold):
            refuse("gold", f"{max(len(proxy), 1)} rewards, one per rollout", len(gold))
        means = [
            math.fsum(finite(name, value) for value in values) / len(values)
            for name, values in (("proxy", proxy), ("gold", gold))
        ]
        self._rewards[step] = means[0], means[1]
        if self.path is not None:
            rows = ({"step": at, "proxy": ours, "gold": theirs} for at, (ours, theirs) in sorted(self._rewards.items()))
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def forget(self, step: int) -> None:
        """Leave out this checkpoint and later ones, as a training that begins at this step makes them anew."""
        self._rewards = {at: means for at, means in self._rewards.items() if at < step}

    @property
    def steps(self) -> list[int]:
        """Of the checkpoints, ascending."""
        return sorted(self._rewards)

    @property
    def proxy(self) -> list[float]:
        """Mean proxy reward of each."""
        return [self._rewards[step][0] for step in self.steps]

    @property
    def gold(self) -> list[float]:
        """Mean gold reward of each."""
        return [self._rewards[step][1] for step in self.steps]

    def monotonicity(self) -> Monotonicity:
        """Over all checkpoints so far, at least two."""
        return monotonicity(self.proxy, self.gold)

    def __len__(self) -> int:
        return len(self._rewards)
