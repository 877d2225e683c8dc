"""The conformance matrix of list objectives: what every loss over lists of candidates promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from tests.conformance.subjects import list_objective_types
from tests.ranks import run_ranks
from torch import Tensor

from scorecraft.core import Cosine, ListObjective, Pairs, across_ranks, in_batch, list_score_gradients, tiled

TYPES = list_objective_types()
assert len(TYPES) >= 3
SIZES = {"even": (4, 4), "uneven": (3, 7)}
per_kind = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)


def data(
    kind: type[ListObjective], lists: tuple[int, ...] = (6,), candidates: int = 5, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, relevances (one relevant candidate in front, which every objective knows to read) and a mask."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*lists, candidates)
    channels = (kind.channels,) if kind.channels > 1 else ()
    scores = torch.randn(*channels, *shape, generator=generator, dtype=torch.float64)
    relevance = torch.zeros(shape, dtype=torch.float64)
    relevance[..., 0] = 1.0
    where = torch.rand(shape, generator=generator) < 0.7
    where[..., :2] = True
    return scores.requires_grad_(), relevance, where


def gradient(value: Tensor, scores: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value.sum(), scores, materialize_grads=True, allow_unused=True)
    return found


@per_kind
def test_gradient_is_the_derivative_or_the_stated_pull(kind: type[ListObjective]) -> None:
    objective = kind.example()
    scores, relevance, where = data(kind, lists=(3,), candidates=4)
    if not objective.value_is_the_loss:
        pytest.skip("its weights are constants: the value is not what descends")
    assert torch.autograd.gradcheck(lambda s: objective(s, relevance, where), (scores,), eps=1e-7, atol=1e-5)


@per_kind
def test_masked_candidates_take_part_in_nothing(kind: type[ListObjective]) -> None:
    objective = kind.example(reduction="none")
    scores, relevance, where = data(kind)
    value = objective(scores, relevance, where)
    pull = gradient(value, scores)
    assert (pull[..., ~where] == 0).all()
    for filler in (torch.nan, torch.inf, -torch.inf, 1e30):
        filled = torch.where(where, scores.detach(), filler).requires_grad_()
        unknown = torch.where(where, relevance, torch.nan)
        again = objective(filled, unknown, where)
        torch.testing.assert_close(again, value)
        torch.testing.assert_close(gradient(again, filled), pull)


@per_kind
def test_minus_infinity_is_padding(kind: type[ListObjective]) -> None:
    objective = kind.example()
    scores, relevance, where = data(kind)
    padded = torch.where(where, scores.detach(), -torch.inf).requires_grad_()
    value = objective(padded, relevance)
    torch.testing.assert_close(value, objective(scores, relevance, where))
    torch.testing.assert_close(gradient(value, padded), gradient(objective(scores, relevance, where), scores))


@per_kind
def test_lists_may_be_ragged(kind: type[ListObjective]) -> None:
    objective = kind.example(reduction="none")
    scores, relevance, where = data(kind)
    owners = torch.arange(len(where))[:, None].expand(where.shape)[where]
    flat = scores.detach()[..., where].requires_grad_()
    value = objective(flat, relevance[where], segments=owners)
    torch.testing.assert_close(value, objective(scores, relevance, where))
    torch.testing.assert_close(gradient(value, flat), gradient(objective(scores, relevance, where), scores)[..., where])
    if kind.order_invariant:
        mixed = torch.randperm(len(owners), generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(objective(flat[..., mixed], relevance[where][mixed], segments=owners[mixed]), value)


@per_kind
def test_any_number_of_list_axes(kind: type[ListObjective]) -> None:
    objective = kind.example(reduction="none")
    scores, relevance, where = data(kind, lists=(2, 3))
    value = objective(scores, relevance, where)
    assert value.shape == (2, 3)
    for row in range(2):
        part = scores[:, row] if kind.channels > 1 else scores[row]
        torch.testing.assert_close(objective(part, relevance[row], where[row]), value[row])
    one = scores[:, 0, 0] if kind.channels > 1 else scores[0, 0]
    torch.testing.assert_close(objective(one, relevance[0, 0], where[0, 0]), value[0, 0])


@per_kind
def test_order_of_a_list(kind: type[ListObjective]) -> None:
    if not kind.order_invariant:
        pytest.skip("it reads the order")
    objective = kind.example()
    scores, relevance, where = data(kind)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        objective(scores[..., order], relevance[:, order], where[:, order]), objective(scores, relevance, where)
    )


@per_kind
@pytest.mark.parametrize("what", ["nothing relevant", "all relevant", "one candidate", "no candidate"])
def test_lists_without_a_choice(kind: type[ListObjective], what: str) -> None:
    objective = kind.example()
    scores, relevance, where = data(kind)
    if what == "nothing relevant":
        relevance = torch.zeros_like(relevance)
    elif what == "all relevant":
        relevance = torch.ones_like(relevance)
    else:
        where = torch.zeros_like(where)
        where[..., 0] = what == "one candidate"
    value = objective(scores, relevance, where)
    pull = gradient(value, scores)
    assert value.isfinite()
    assert pull.isfinite().all()
    if what == "no candidate":
        assert value == 0
        assert (pull == 0).all()


@per_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_scores_of_half_precision(kind: type[ListObjective], dtype: torch.dtype) -> None:
    objective = kind.example()
    scores, relevance, where = data(kind)
    extreme = (scores.detach().sign() * 6e4).to(dtype).requires_grad_()
    value = objective(extreme, relevance, where)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient(value, extreme).isfinite().all()


@per_kind
def test_reductions_and_weights(kind: type[ListObjective]) -> None:
    scores, relevance, where = data(kind)
    weights = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weights[2] = 0
    losses = kind.example(reduction="none")(scores, relevance, where)
    torch.testing.assert_close(kind.example(reduction="sum")(scores, relevance, where), losses.sum())
    torch.testing.assert_close(kind.example()(scores, relevance, where), losses.mean())
    weighted = kind.example()(scores, relevance, where, weights=weights)
    torch.testing.assert_close(weighted, (losses * weights).sum() / weights.sum())
    alone = where.new_ones(6)
    alone[2] = False
    uncounted = kind.example()(scores[..., alone, :], relevance[alone], where[alone], weights=weights[alone])
    torch.testing.assert_close(weighted, uncounted)


@per_kind
def test_objectives_add_and_scale(kind: type[ListObjective]) -> None:
    objective = kind.example()
    scores, relevance, where = data(kind)
    total = objective + 0.5 * objective
    torch.testing.assert_close(total(scores, relevance, where), 1.5 * objective(scores, relevance, where))
    pull = list_score_gradients(total, scores, relevance, where=where)
    torch.testing.assert_close(pull, 1.5 * gradient(objective(scores, relevance, where), scores))


@per_kind
def test_compiles_in_one_graph(kind: type[ListObjective]) -> None:
    objective = kind.example()
    scores, relevance, where = data(kind)
    torch._dynamo.reset()  # or the kinds before it count towards its limit of recompilations
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    value = compiled(scores, relevance, where)
    torch.testing.assert_close(value, objective(scores, relevance, where))
    torch.testing.assert_close(gradient(value, scores), gradient(objective(scores, relevance, where), scores))


@per_kind
def test_state_round_trip(kind: type[ListObjective]) -> None:
    objective = kind.example()
    state = safetensors.torch.load(safetensors.torch.save(dict(objective.state_dict())))
    kind.example().load_state_dict(state)
    assert kind.__name__ in repr(objective)
    assert "reduction" in repr(objective)


@per_kind
def test_what_is_refused(kind: type[ListObjective]) -> None:
    objective = kind.example()
    scores, relevance, where = data(kind)
    bad = scores.detach().clone()
    bad[..., 0, 1] = torch.nan
    for call, message in (
        (lambda: objective(bad, relevance), "argument `scores`: expected finite values"),
        (lambda: objective(scores.detach().long(), relevance), "argument `scores`: expected floating-point scores"),
        (lambda: objective(scores[..., :0], relevance[..., :0]), "argument `scores`"),
        (lambda: objective(scores, relevance[:, 1:]), "argument `relevance`: expected one per candidate"),
        (lambda: objective(scores, -relevance), "argument `relevance`: expected finite values >= 0"),
        (lambda: objective(scores, relevance, where.float()), "argument `where`: expected a bool tensor"),
        (lambda: objective(scores, relevance, weights=torch.ones(3)), "argument `weights`"),
        (lambda: objective(scores, relevance, weights=-torch.ones(6)), "argument `weights`: expected finite weights"),
        (lambda: objective(scores, relevance, segments=torch.zeros(3, dtype=torch.long)), "argument `segments`"),
        (lambda: kind.example(reduction="median"), "argument `reduction`"),
    ):
        with pytest.raises(ValueError, match=r"^argument") as caught:
            call()
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


@per_kind
def test_in_batch_form_is_tiled_exactly(kind: type[ListObjective]) -> None:
    if kind.channels > 1:
        pytest.skip("several scores per candidate are not a score map")
    objective = in_batch(kind.example(), score=5 * Cosine())
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    passages = torch.randn(18, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    pairs = Pairs.of_queries(torch.arange(9), passages=torch.randint(0, 12, (18,), generator=generator))
    expected = objective(queries, reference=passages, pairs=pairs)
    found = tiled(objective, block=4)(queries, reference=passages, pairs=pairs)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, (queries, passages)), torch.autograd.grad(expected, (queries, passages)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    positives, negatives = pairs.masks()
    scores = 5 * torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(passages, dim=1).T
    torch.testing.assert_close(expected, kind.example()(scores, positives, positives | negatives))


def _on_ranks(rank: int, folder: str) -> None:
    errors: dict[str, float] = {}
    for name, sizes in SIZES.items():
        own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        for kind in TYPES:
            scores, relevance, where = data(kind, lists=(sum(sizes),))
            relevance[1] = 0  # a list that some means leave out
            objective = kind.example()
            whole = objective(scores, relevance, where)
            expected = gradient(whole, scores)[..., own, :]
            mine = scores.detach()[..., own, :].requires_grad_()
            value = across_ranks(objective)(mine, relevance[own], where[own])
            mean = value.detach().clone()
            dist.all_reduce(mean)
            pull = gradient(value, mine) / len(sizes)  # the average of DDP
            errors[f"{kind.__name__} {name}"] = max(
                float((mean / len(sizes) - whole).abs()), float((pull - expected).abs().max())
            )
        for kind in TYPES:
            if kind.channels == 1 and kind.order_invariant:
                errors[f"in_batch {kind.__name__} {name}"] = _in_batch_error(kind, rank, sizes)
    Path(folder, f"{rank}.json").write_text(json.dumps(errors))


def _in_batch_error(kind: type[ListObjective], rank: int, sizes: tuple[int, ...]) -> float:
    """Queries with one hard negative each; passage 1 of the first rank is passage 0 of the second one again."""
    generator = torch.Generator().manual_seed(4)
    queries = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64, requires_grad=True)
    positives = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64)
    negatives = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64)
    identities = torch.arange(2 * sum(sizes))
    identities[sizes[0]] = identities[1]
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    objective = in_batch(kind.example(), score=5 * Cosine())
    whole = objective(
        queries,
        reference=torch.cat([positives, negatives]),
        pairs=Pairs.of_queries(torch.arange(sum(sizes)), passages=identities),
    )
    mine = queries.detach()[own].requires_grad_()
    ids = torch.cat([identities[: sum(sizes)][own], identities[sum(sizes) :][own]])
    value = across_ranks(tiled(objective, block=3))(
        mine,
        reference=torch.cat([positives[own], negatives[own]]),
        pairs=Pairs.of_queries(torch.arange(sizes[rank]), passages=ids),
    )
    mean = value.detach().clone()
    dist.all_reduce(mean)
    pull = gradient(value, mine) / len(sizes)
    return max(float((mean / len(sizes) - whole).abs()), float((pull - gradient(whole, queries)[own]).abs().max()))


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    run_ranks(_on_ranks, tmp_path)
    for rank in range(2):
        errors = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(errors) >= 2 * len(TYPES)
        assert {name: error for name, error in errors.items() if not error < 1e-10} == {}
