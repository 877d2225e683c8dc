"""Which pairs are positive, which are negative, and which are left out; and the block of scores an objective reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.core.checks import check_labels, check_values, describe, refuse
from scorecraft.core.reductions import Mask

Labels: TypeAlias = Int[Tensor, "n ..."] | Bool[Tensor, "n classes"]
"""One class index per example, or a multi-hot row."""
ReferenceLabels: TypeAlias = Int[Tensor, "m ..."] | Bool[Tensor, "m classes"]
Part: TypeAlias = slice | Int[Tensor, " k"]
"""Some of the rows or columns."""

_MASK_ELEMENTS = 1 << 22
"""Pairs looked at together where a whole relation is read."""


class Tile(NamedTuple):
    """A block of scores between some rows (anchors) and some columns (the others)."""

    scores: tuple[Float[Tensor, "r c"], ...]
    """One block per score channel."""
    positives: Mask
    """Bool `[r, c]`, or a plain bool when the whole block agrees."""
    negatives: Mask
    """As `positives`; a pair that is neither is left out."""
    rows: Int[Tensor, " r"]
    """Global indices of the rows."""
    columns: Int[Tensor, " c"]
    """Global indices of the columns."""
    grades: Float[Tensor, "r c"] | None = None
    """Graded relevance of the positives, where the pairs carry one."""

    @property
    def score(self) -> Float[Tensor, "r c"]:
        """The scores of the first (for most objectives the only) channel."""
        return self.scores[0]

    def transposed(self) -> Tile:
        """The same block seen from its columns."""
        return Tile(
            tuple(scores.T for scores in self.scores),
            _transpose(self.positives),
            _transpose(self.negatives),
            self.columns,
            self.rows,
            None if self.grades is None else self.grades.T,
        )


class Order(NamedTuple):
    """Pairs whose rows and columns have been sorted so that positives stand together."""

    pairs: Pairs
    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " m"]


class Pairs(ABC):
    """The relation between `n` rows and `m` columns: positive, negative or left out."""

    rows: int
    columns: int
    symmetric: bool
    """Whether `(i, j)` and `(j, i)` are always of one kind."""

    @staticmethod
    def from_labels(
        labels: Labels,
        reference_labels: ReferenceLabels | None = None,
        *,
        ids: Int[Tensor, " n"] | None = None,
        reference_ids: Int[Tensor, " m"] | None = None,
        ignore: Bool[Tensor, " n"] | None = None,
        reference_ignore: Bool[Tensor, " m"] | None = None,
    ) -> Pairs:
        """Positive when the labels agree (multi-hot labels `[n, classes]`: when they share a class), else negative.

        Without a reference the rows are compared with themselves and every self pair is left out, by index. With one,
        pairs of equal `ids` are left out. Examples marked in `ignore` take part in no pair.
        """
        check_labels("labels", labels, len(labels))
        if reference_labels is None:
            own = torch.arange(len(labels), device=labels.device) if ids is None else ids
            return _LabelPairs(labels, labels, own, own, ignore, ignore, ids is None)
        check_labels("reference_labels", reference_labels, len(reference_labels))
        if labels.ndim != reference_labels.ndim or labels.shape[1:] != reference_labels.shape[1:]:
            refuse("reference_labels", f"labels like those of the rows, {describe(labels)}", describe(reference_labels))
        if (ids is None) != (reference_ids is None):
            refuse("reference_ids", "ids for both sides or for neither", "one side only")
        return _LabelPairs(labels, reference_labels, ids, reference_ids, ignore, reference_ignore, False)

    @staticmethod
    def from_masks(
        positives: Bool[Tensor, "n m"] | Float[Tensor, "n m"], negatives: Bool[Tensor, "n m"] | None = None
    ) -> Pairs:
        """Pairs given one by one. Floating-point `positives` are grades: a pair with a grade above 0 is positive.

        Without `negatives`, every pair that is not positive is negative (the diagonal of a square relation too: leave
        self pairs out yourself by passing `negatives`).
        """
        if positives.ndim != 2:
            refuse("positives", "a matrix [n, m]", describe(positives))
        grades = positives if positives.is_floating_point() else None
        mask = positives > 0 if grades is not None else positives
        if mask.dtype != torch.bool:
            refuse("positives", "a bool or floating-point matrix", describe(positives))
        negatives = ~mask if negatives is None else negatives
        if negatives.dtype != torch.bool or negatives.shape != mask.shape:
            refuse("negatives", f"a bool matrix of shape {tuple(mask.shape)}", describe(negatives))
        return _MaskPairs(mask, negatives, grades)

    @staticmethod
    def of_queries(
        positives: Int[Tensor, " n"],
        *,
        passages: int | Int[Tensor, "m ..."],
        relevant: Int[Tensor, "n r"] | None = None,
    ) -> Pairs:
        """Queries against passages: each query has one positive column, every other passage is a negative.

        Args:
            positives: the column of each query's positive.
            passages: identities of the passages `[m]`, or how many there are when all of them differ. The same passage
                in another column (a duplicate of the positive) is neither positive nor negative. Several identities
                each, `[m, k]`, make a passage the same when one of them agrees.
            relevant: (first) identities of all passages known to be relevant to each query, padded with -1: such
                passages are no negatives either (false negatives).
        """
        identities = torch.arange(passages, device=positives.device) if isinstance(passages, int) else passages
        return _QueryPairs(positives, identities[:, None] if identities.ndim == 1 else identities, relevant)

    @abstractmethod
    def block(self, rows: Part, columns: Part) -> tuple[Mask, Mask, Float[Tensor, "r c"] | None]:
        """Positives, negatives and grades between some rows and some columns."""

    def masks(self) -> tuple[Bool[Tensor, "n m"], Bool[Tensor, "n m"]]:
        """All positives and all negatives."""
        positives, negatives, _ = self.block(slice(None), slice(None))
        if isinstance(positives, bool) or isinstance(negatives, bool):
            raise TypeError("only the blocks of sorted pairs are known without looking")
        return positives, negatives

    def rows_with_positives(self) -> Bool[Tensor, " n"]:
        """Which rows have a positive at all."""
        found = []
        step = max(1, _MASK_ELEMENTS // self.columns)
        for start in range(0, self.rows, step):
            positives, _, _ = self.block(slice(start, start + step), slice(None))
            if isinstance(positives, bool):
                raise TypeError("only the blocks of sorted pairs are known without looking")
            found.append(positives.any(dim=1))
        return torch.cat(found)

    def sorted(self) -> Order | None:
        """The same relation with positives gathered near the diagonal, when it knows how."""
        return None

    def gathered(self, gather: Callable[[Tensor], Tensor], offset: int) -> Pairs:
        """The relation between this rank's rows and all ranks' columns; this rank's rows start at `offset`."""
        refuse("pairs", "labels: explicit pairs do not say how they relate to other ranks' examples", "masks")


class _LabelPairs(Pairs):
    def __init__(
        self,
        labels: Tensor,
        others: Tensor,
        ids: Tensor | None,
        other_ids: Tensor | None,
        ignore: Tensor | None,
        other_ignore: Tensor | None,
        same_id_same_label: bool,
        is_sorted: bool = False,
    ) -> None:
        self.labels, self.others = labels, others
        self.ids, self.other_ids = ids, other_ids
        self.ignore, self.other_ignore = ignore, other_ignore
        self.same_id_same_label = same_id_same_label
        self.is_sorted = is_sorted
        self.rows, self.columns = len(labels), len(others)
        self.symmetric = labels is others
        for name, value, length in (("ids", ids, self.rows), ("reference_ids", other_ids, self.columns)):
            if value is not None and (value.shape != (length,) or value.is_floating_point()):
                refuse(name, f"{length} integers", describe(value))
        for name, value, length in (("ignore", ignore, self.rows), ("reference_ignore", other_ignore, self.columns)):
            if value is not None and (value.shape != (length,) or value.dtype != torch.bool):
                refuse(name, f"a bool tensor of shape ({length},)", describe(value))

    def block(self, rows: Part, columns: Part) -> tuple[Mask, Mask, Tensor | None]:
        labels, others = self.labels[rows], self.others[columns]
        runs = self.is_sorted and isinstance(rows, slice) and isinstance(columns, slice)
        if runs and self.same_id_same_label and self._apart(labels, others):
            return False, True, None
        positives = labels[:, None] == others[None, :] if labels.ndim == 1 else (labels.float() @ others.float().T) > 0
        negatives = ~positives
        if self.ids is not None and self.other_ids is not None:
            different = self.ids[rows][:, None] != self.other_ids[columns]
            positives, negatives = positives & different, negatives & different
        if self.ignore is not None:
            kept = ~self.ignore[rows][:, None]
            positives, negatives = positives & kept, negatives & kept
        if self.other_ignore is not None:
            kept = ~self.other_ignore[columns]
            positives, negatives = positives & kept, negatives & kept
        return positives, negatives, None

    def gathered(self, gather: Callable[[Tensor], Tensor], offset: int) -> Pairs:
        ids, others = self.ids, self.others
        if self.same_id_same_label and ids is not None:
            ids = ids + offset

        def gather_if_there(value: Tensor | None) -> Tensor | None:
            return None if value is None else gather(value)

        if self.others is self.labels:
            other_ids, other_ignore = gather_if_there(ids), gather_if_there(self.ignore)
        else:
            other_ids, other_ignore = gather_if_there(self.other_ids), gather_if_there(self.other_ignore)
        return _LabelPairs(
            self.labels, gather(others), ids, other_ids, self.ignore, other_ignore, self.same_id_same_label
        )

    def rows_with_positives(self) -> Bool[Tensor, " n"]:
        plain = self.labels.ndim == 1 and self.ignore is None and self.other_ignore is None
        if not plain or not (self.ids is None or self.same_id_same_label):
            return super().rows_with_positives()
        others = self.others.sort().values
        equal = torch.searchsorted(others, self.labels, right=True) - torch.searchsorted(others, self.labels)
        return equal > (0 if self.ids is None else 1)  # with ids, one of them is the row itself

    @staticmethod
    def _apart(labels: Tensor, others: Tensor) -> bool:
        """Two runs of sorted labels without a common label."""
        return int(labels[-1]) < int(others[0]) or int(others[-1]) < int(labels[0])

    def sorted(self) -> Order | None:
        # Elsewhere than on the CPU the comparison of label ranges would wait for the device.
        if self.labels.ndim != 1 or self.labels.device.type != "cpu" or self.ignore is not None:
            return None
        if self.other_ignore is not None:
            return None
        same = self.labels is self.others
        row_order = self.labels.argsort(stable=True)
        column_order = row_order if same else self.others.argsort(stable=True)
        labels = self.labels[row_order]
        ids = None if self.ids is None else self.ids[row_order]
        pairs = _LabelPairs(
            labels,
            labels if same else self.others[column_order],
            ids,
            ids if same else None if self.other_ids is None else self.other_ids[column_order],
            None,
            None,
            # Without ids no pair is left out, so a block of apart labels holds negatives only all the same.
            self.same_id_same_label or self.ids is None,
            is_sorted=True,
        )
        return Order(pairs, row_order, column_order)


class _QueryPairs(Pairs):
    def __init__(
        self,
        positives: Tensor,
        passages: Tensor,
        relevant: Tensor | None,
        columns: Tensor | None = None,
        own: Tensor | None = None,
    ) -> None:
        self.rows, self.columns = len(positives), len(passages)
        self.symmetric = False
        for name, value, axes in (("positives", positives, 1), ("passages", passages, 2)):
            if value.ndim != axes or value.is_floating_point():
                refuse(name, "integers, one per query or passage", describe(value))
        if relevant is not None and (relevant.ndim != 2 or len(relevant) != self.rows or relevant.is_floating_point()):
            refuse("relevant", f"passage identities [{self.rows}, r], padded with -1", describe(relevant))
        if columns is None:
            check_values(
                "positives",
                f"columns below {self.columns}",
                ((positives >= 0) & (positives < self.columns)).all,
                positives,
            )
        self.positives, self.passages, self.relevant = positives, passages, relevant
        self.keys = torch.arange(self.columns, device=passages.device) if columns is None else columns
        """Names of the columns, under which a query knows its positive on every rank."""
        self.own = passages[positives] if own is None else own

    def block(self, rows: Part, columns: Part) -> tuple[Mask, Mask, Tensor | None]:
        passages = self.passages[columns]
        positives = self.positives[rows][:, None] == self.keys[columns]
        own = self.own[rows]
        negatives = own[:, :1] != passages[:, 0]
        for identity in range(1, passages.shape[1]):
            negatives &= own[:, identity, None] != passages[:, identity]
        if self.relevant is not None:
            for known in self.relevant[rows].unbind(1):
                negatives &= known[:, None] != passages[:, 0]
        return positives, negatives, None

    def rows_with_positives(self) -> Bool[Tensor, " n"]:
        return torch.ones(self.rows, dtype=torch.bool, device=self.passages.device)

    def gathered(self, gather: Callable[[Tensor], Tensor], offset: int) -> Pairs:
        stride = torch.tensor([self.columns], device=self.passages.device)
        widest = int(gather(stride).max())  # column names stay apart between ranks
        return _QueryPairs(
            self.positives + offset * widest,
            gather(self.passages),
            self.relevant,
            gather(self.keys + offset * widest),
            self.own,
        )


class _MaskPairs(Pairs):
    def __init__(self, positives: Tensor, negatives: Tensor, grades: Tensor | None) -> None:
        self.positives, self.negatives, self.grades = positives, negatives, grades
        self.rows, self.columns = positives.shape
        self.symmetric = False  # what a miner keeps of (i, j) says nothing of (j, i)

    def block(self, rows: Part, columns: Part) -> tuple[Mask, Mask, Tensor | None]:
        grades = None if self.grades is None else self.grades[rows][:, columns]
        return self.positives[rows][:, columns], self.negatives[rows][:, columns], grades


def _transpose(mask: Mask) -> Bool[Tensor, "c r"] | bool:
    return mask if isinstance(mask, bool) else mask.T
