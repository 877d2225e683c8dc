"""The files a new paper needs, laid out from its planned card: `scorecraft new-paper SLUG`.

What is laid out runs, and claims nothing: an objective whose formula is still to be written raises
`NotImplementedError`, so the conformance matrix and the study fail until it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

from scorecraft.catalog.entries import Entry
from scorecraft.core.paper import Paper
from scorecraft.studies.run_folder import write_atomically


class AlreadyThere(ValueError):
    """A file that would be laid out exists."""


def lay_out(entry: Entry, root: Path) -> list[Path]:
    """Write the skeleton of a planned paper into a checkout, and return what was written.

    Raises:
        AlreadyThere: the paper is finished, or one of the files exists; nothing is written then.
    """
    if entry.done:
        raise AlreadyThere(
            f"`{entry.paper.slug}` is finished: its card is in a module of scorecraft.{entry.paper.room}"
        )
    files = {root / path: text for path, text in skeleton(entry.paper).items()}
    for path in files:
        if path.exists():
            raise AlreadyThere(f"{path} is there already: move it away, or go on from it")
    for path, text in files.items():
        write_atomically(path, text)
    return list(files)


def skeleton(paper: Paper) -> Mapping[str, str]:
    """The files by their path in the checkout."""
    words = {
        "slug": paper.slug,
        "title": paper.title,
        "arxiv": paper.arxiv,
        "room": paper.room,
        "kind": "".join(part.capitalize() for part in paper.slug.split("_")) + "Loss",
        "card": _card(paper),
        "hyphenated": paper.slug.replace("_", "-"),
    }
    return {Template(path).substitute(words): Template(text).substitute(words) for path, text in _FILES.items()}


def _card(paper: Paper) -> str:
    fields = [
        f"    {name}={value!r},"
        for name in ("slug", "title", "arxiv", "date", "room", "kind", "authors", "venue")
        if (value := getattr(paper, name))
    ]
    return "\n".join(fields)


_FILES = {
    "src/scorecraft/$room/$slug/__init__.py": '''"""$title (arXiv $arxiv)."""

from scorecraft.core.paper import Paper
from scorecraft.$room.$slug.loss import $kind

__all__ = ["PAPER", "$kind"]

PAPER = Paper(
$card
    api=("scorecraft.$room.$slug.$kind",),
)
''',
    "src/scorecraft/$room/$slug/loss.py": '''"""What the method does, in the field's words."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from scorecraft.core.objective import RowObjective
from scorecraft.core.pairs import Tile


class $kind(RowObjective):
    """The equation.

    Source: $title, arXiv $arxiv.
    """

    def row_loss(self, tile: Tile) -> Float[Tensor, " r"]:
        raise NotImplementedError("write the loss of each row, in the log domain, from tile.scores")
''',
    "tests/$room/$slug/test_loss.py": '''"""Check values and properties."""

from __future__ import annotations

import torch

from scorecraft.$room.$slug import $kind


def test_check_values() -> None:
    scores = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]], dtype=torch.float64)
    expected = torch.tensor(float("nan"), dtype=torch.float64)  # the figure of the specification
    torch.testing.assert_close($kind().on_scores(scores, torch.tensor([0, 0, 1])), expected)
''',
    "src/scorecraft/studies/$slug.py": '''"""Does the claim show? All is fixed before anything is run."""

from __future__ import annotations

from collections.abc import Mapping

from scorecraft.studies.embedding_training import class_batches, unseen_embeddings
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Study, World
from scorecraft.similarity.multi_similarity import ContrastiveLoss
from scorecraft.similarity.recall import recall_at_k
from scorecraft.studies.worlds import Items
from scorecraft.$room.$slug import PAPER, $kind


def objective(world: World, contender: Contender, seen: Items, width: int, seed: int) -> $kind | ContrastiveLoss:
    """What a contender minimises."""
    del world, seen, width, seed
    return $kind() if contender.role == "method" else ContrastiveLoss()


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> Mapping[str, float]:
    """Train on seen classes, measure on unseen ones."""
    found = unseen_embeddings(world, contender, seed, scale, objective=objective, batches=class_batches)
    return {"recall_at_1": recall_at_k(*found, 1)[1]}


_TRAINING = {
    "hidden": 64, "embedding": 16, "learning_rate": 1e-3, "weight_decay": 1e-4, "batch": 80, "batch_classes": 16,
}  # fmt: skip

STUDY = Study(
    paper=PAPER,
    claim=Claim("The claim in one sentence.", metric="recall_at_1", margin=0.01),
    metrics=(Metric("recall_at_1", "Recall@1"),),
    worlds=(World("generated", "generated world"), World("digits", "handwritten digits")),
    contenders=(
        Contender("$slug", "$kind", role="method"),
        Contender("contrastive", "contrastive", role="baseline"),
    ),
    trial=trial,
    scales=(Scale("smoke", 2, {**_TRAINING, "steps": 20}), Scale("desk", 8, {**_TRAINING, "steps": 400})),
)
''',
    "docs/papers/$slug.md": """# $title

[arXiv $arxiv](https://arxiv.org/abs/$arxiv) · `scorecraft show $hyphenated` · `scorecraft reproduce $hyphenated`

**Use it** when. **Do not use it** when.

## The equation

    L =

## In your trainer

```python
import torch
from scorecraft.$room.$slug import $kind

embeddings, labels = torch.randn(64, 16, requires_grad=True), torch.arange(64) % 16
$kind()(embeddings, labels).backward()
```
""",
}
