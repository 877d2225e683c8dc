"""MetrixLoss: what it adds to a base, when, and through the engine's wrappers."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from scipy import stats
from tests.ranks import run_ranks
from tests.similarity.metrix.explicit import batch, explicit_losses, masks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scorecraft.core import (
    Dot,
    Objective,
    Pairs,
    across_ranks,
    citation,
    gradient_cached,
    score_gradients,
    tiled,
)
from scorecraft.similarity.metrix import (
    GenericPairLoss,
    MetrixLoss,
    PairForm,
    ProxyAnchored,
    form_of,
    symmetric_beta,
)
from scorecraft.similarity.multi_similarity import (
    BinomialDevianceLoss,
    ContrastiveLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    TripletLoss,
)
from scorecraft.similarity.tcm import ThresholdConsistentMarginLoss

BASES: tuple[Callable[..., Objective], ...] = (
    MultiSimilarityLoss,
    ContrastiveLoss,
    LiftedStructureLoss,
    BinomialDevianceLoss,
    lambda **options: GenericPairLoss(PairForm.proxy_anchor(), **options),
)
KINDS = ("positive_negative", "anchor_negative")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", BASES)
def test_the_mixed_part_is_the_mean_over_all_anchors(base: Callable[..., Objective], kind: Any) -> None:
    x, labels = batch(21)
    labels[0] = 99  # an anchor without positives
    loss = MetrixLoss(base())
    losses = explicit_losses(loss.form, x, x, *masks(labels), 0.3, kind=kind)
    expected = losses.mean()
    found = loss.mixed_loss(x, labels, lam=0.3, kind=kind)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(found, x)[0], torch.autograd.grad(expected, x, retain_graph=True)[0], rtol=1e-9, atol=1e-12
    )
    for reduction, reduced in (("sum", losses.sum()), ("none", losses)):
        other = MetrixLoss(base(reduction=reduction))
        torch.testing.assert_close(other.mixed_loss(x, labels, lam=0.3, kind=kind), reduced)


def test_the_total_is_the_base_and_the_weighted_mixed_part() -> None:
    x, labels = batch()
    for reduction in ("mean", "sum", "none"):
        base = MultiSimilarityLoss(reduction=reduction)  # type: ignore[arg-type]
        loss = MetrixLoss(base, weight=0.7, seed=3)
        lam, kind = copy.deepcopy(loss).draw()
        expected = base(x, labels) + 0.7 * loss.mixed_loss(x, labels, lam=lam, kind=kind)
        torch.testing.assert_close(loss(x, labels), expected)


def test_without_weight_and_in_evaluation_it_is_the_base_bit_for_bit() -> None:
    """Property (c)."""
    x, labels = batch()
    base = MultiSimilarityLoss()
    assert torch.equal(MetrixLoss(base, weight=0)(x, labels), base(x, labels))
    loss = MetrixLoss(base)
    assert torch.equal(loss.eval()(x, labels), base(x, labels))
    assert not torch.equal(loss.train()(x, labels), base(x, labels))
    scores = base.dense_scores(base.batch(x, labels))[0]
    assert torch.equal(loss.eval().on_scores(scores, labels), base.on_scores(scores, labels))


def test_draws_follow_the_seed() -> None:
    x, labels = batch()
    one, same, other = (MetrixLoss(MultiSimilarityLoss(), seed=seed) for seed in (0, 0, 1))
    torch.manual_seed(5)
    first = [one(x, labels).item() for _ in range(4)]
    torch.manual_seed(6)
    assert [same(x, labels).item() for _ in range(4)] == first
    assert len(set(first)) == 4
    assert [other(x, labels).item() for _ in range(4)] != first


def test_the_state_dict_says_where_the_draws_stand() -> None:
    x, labels = batch()
    loss = MetrixLoss(MultiSimilarityLoss())
    loss(x, labels)
    stored = safetensors.torch.save(dict(loss.state_dict()))
    other = MetrixLoss(MultiSimilarityLoss(), seed=9)
    other.load_state_dict(safetensors.torch.load(io.BytesIO(stored).getvalue()))
    assert other(x, labels).item() == loss(x, labels).item()
    again = copy.deepcopy(loss)
    assert again.draw() == loss.draw()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0, 8.0])
def test_lam_is_beta_distributed(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [symmetric_beta(alpha, generator) for _ in range(4000)]
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_lam_is_finite_for_any_alpha_and_clipped() -> None:
    generator = torch.Generator().manual_seed(0)
    assert all(0 <= symmetric_beta(1e-4, generator) <= 1 for _ in range(50))
    loss = MetrixLoss(MultiSimilarityLoss(), alpha=0.01, smallest_share=0.02)
    lams = {loss.draw()[0] for _ in range(50)}
    assert {min(lams), max(lams)} == {0.02, 0.98}


def test_kinds_are_drawn_evenly_or_fixed() -> None:
    loss = MetrixLoss(MultiSimilarityLoss())
    share = sum(loss.draw()[1] == "positive_negative" for _ in range(400)) / 400
    assert 0.42 < share < 0.58
    for kind in KINDS:
        fixed = MetrixLoss(MultiSimilarityLoss(), kind=kind)  # type: ignore[arg-type]
        assert {fixed.draw()[1] for _ in range(20)} == {kind}
        both = MetrixLoss(MultiSimilarityLoss())
        fixed = MetrixLoss(MultiSimilarityLoss(), kind=kind)  # type: ignore[arg-type]
        # Fixing the kind leaves the stream of weights as it is.
        assert [fixed.draw()[0] for _ in range(5)] == [both.draw()[0] for _ in range(5)]


@pytest.mark.parametrize("labels", [[0] * 6, list(range(6))], ids=["one class", "no positives"])
@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_batches(labels: list[int], kind: Any) -> None:
    x, _ = batch(6)
    loss = MetrixLoss(MultiSimilarityLoss(), kind=kind)
    value = loss(x, torch.tensor(labels))
    assert value.isfinite()
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.isfinite().all()
    if labels == [0] * 6 or kind == "positive_negative":
        assert value == 0
        assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", ["collapsed", "opposite", "huge", "tiny"])
def test_finite_at_extreme_scores(shape: str, dtype: torch.dtype) -> None:
    x, labels = batch(16)
    ones = torch.ones_like(x)
    sign = torch.where(labels[:, None] % 2 == 0, 1.0, -1.0)
    extreme = {"collapsed": ones, "opposite": sign * ones, "huge": x * 3e3, "tiny": x * 1e-3}[shape]
    extreme = extreme.detach().to(dtype).requires_grad_()
    for kind in KINDS:
        for base in BASES:
            value = MetrixLoss(base(), kind=kind)(extreme, labels)  # type: ignore[arg-type]
            assert value.isfinite()
            assert value.dtype == torch.float32
            assert torch.autograd.grad(value, extreme)[0].isfinite().all()


def test_gradients() -> None:
    x, labels = batch(8, 3, 3)
    loss = MetrixLoss(GenericPairLoss(PairForm.multi_similarity(negative_scale=8)))
    for kind in KINDS:
        assert torch.autograd.gradcheck(lambda e, k=kind: loss.mixed_loss(e, labels, lam=0.4, kind=k), (x,))


def fixed(**options: Any) -> MetrixLoss:
    """A loss at the beginning of its draws."""
    return MetrixLoss(MultiSimilarityLoss(**options), seed=4)


def test_order_of_the_batch_does_not_matter() -> None:
    x, labels = batch(25)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(fixed()(x[order], labels[order]), fixed()(x, labels))


def test_it_adds_scales_and_tiles() -> None:
    x, labels = batch(25)
    value, tcm = fixed()(x, labels), ThresholdConsistentMarginLoss()(x, labels)
    torch.testing.assert_close((fixed() + 0.5 * ThresholdConsistentMarginLoss())(x, labels), value + 0.5 * tcm)
    torch.testing.assert_close((2 * fixed())(x, labels), 2 * value)
    for way in (tiled(fixed(), block=6), MetrixLoss(tiled(MultiSimilarityLoss(), block=6), seed=4)):
        found = way(x, labels)
        torch.testing.assert_close(found, value)
        torch.testing.assert_close(
            torch.autograd.grad(found, x)[0], torch.autograd.grad(fixed()(x, labels), x)[0], rtol=1e-8, atol=1e-11
        )
    encoder = nn.Linear(6, 4).double()
    torch.testing.assert_close(gradient_cached(fixed(), encoder, chunk=7)(x, labels), fixed()(encoder(x), labels))


def test_weights_ignored_examples_pairs_and_a_reference() -> None:
    x, labels = batch(20)
    weights = torch.linspace(0, 2, 20, dtype=torch.float64)
    each = fixed(reduction="none")(x, labels)
    torch.testing.assert_close(fixed()(x, labels, weights=weights), (weights * each).sum() / weights.sum())
    ignore = torch.arange(20) % 3 == 0
    torch.testing.assert_close(fixed()(x, labels, ignore=ignore), fixed()(x[~ignore], labels[~ignore]))
    positives, negatives = masks(labels)
    torch.testing.assert_close(fixed()(x, pairs=Pairs.from_masks(positives, negatives)), fixed()(x, labels))
    own = torch.arange(20)
    separate = {"reference": x, "reference_labels": labels, "ids": own, "reference_ids": own}
    torch.testing.assert_close(fixed()(x, labels, **separate), fixed()(x, labels))
    y, others = batch(30, seed=1)
    found = fixed().mixed_loss(x, labels, lam=0.2, kind="positive_negative", reference=y, reference_labels=others)
    positives = labels[:, None] == others
    expected = explicit_losses(fixed().form, x, y, positives, ~positives, 0.2, kind="positive_negative").mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(found, (x, y)), torch.autograd.grad(expected, (x, y)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_alone_and_the_pull_on_each_pair(kind: Any) -> None:
    x, labels = batch(15)

    def loss() -> MetrixLoss:
        return MetrixLoss(MultiSimilarityLoss(), kind=kind)

    scores = loss().dense_scores(loss().batch(x, labels))[0]
    torch.testing.assert_close(loss().on_scores(scores, labels), loss()(x, labels))
    pull = score_gradients(loss(), x, labels)
    assert pull.diagonal().abs().max() == 0
    (chained,) = torch.autograd.grad((pull * scores).sum(), x)
    torch.testing.assert_close(chained, torch.autograd.grad(loss()(x, labels), x)[0], rtol=1e-9, atol=1e-12)


def test_scores_against_a_reference_do_not_say_how_long_mixtures_are() -> None:
    scores = torch.rand(4, 4, dtype=torch.float64)
    labels, others = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    loss = MetrixLoss(ContrastiveLoss(), kind="positive_negative")
    with pytest.raises(ValueError, match="argument `gram`: expected the cosines of the others"):
        loss.on_scores(scores, labels, reference_labels=others)
    plain = MetrixLoss(ContrastiveLoss(), kind="positive_negative", normalised=False)
    assert plain.on_scores(scores, labels, reference_labels=others).isfinite()


def test_it_compiles_around_the_draw() -> None:
    x, labels = batch(12)
    torch._dynamo.reset()
    compiled, plain = torch.compile(fixed(), backend="eager"), fixed()
    for _ in range(3):  # each call draws: nothing of the first may be frozen in
        torch.testing.assert_close(compiled(x, labels), plain(x, labels))


def test_bad_input_is_refused_in_one_line() -> None:
    base = MultiSimilarityLoss()
    refused: list[tuple[dict[str, Any], str]] = [
        ({"alpha": 0}, "argument `alpha`: expected a finite number > 0"),
        ({"weight": -0.1}, "argument `weight`: expected a finite number >= 0"),
        ({"smallest_share": 0}, "argument `smallest_share`"),
        ({"smallest_share": 0.6}, "argument `smallest_share`: expected a number in"),
        ({"kind": "positive_positive"}, "argument `kind`: expected one of 'either'"),
        ({"form": PairForm.nca()}, "argument `form`: expected a loss that mixtures of one label move, got nca"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            MetrixLoss(base, **options)
    with pytest.raises(ValueError, match="argument `base`: expected an objective scored by"):
        MetrixLoss(MultiSimilarityLoss(score=Dot()))
    with pytest.raises(ValueError, match=r"argument `base`: .*across_ranks"):
        MetrixLoss(across_ranks(base))
    with pytest.raises(ValueError, match="argument `form`: expected a form beside a base of type TripletLoss"):
        MetrixLoss(TripletLoss())
    with pytest.raises(TypeError, match="argument `base`: expected a scorecraft objective, got Linear"):
        MetrixLoss(nn.Linear(2, 2))  # type: ignore[arg-type]
    x, labels = batch()
    loss = MetrixLoss(base)
    with pytest.raises(ValueError, match="argument `lam`: expected a number in"):
        loss.mixed_loss(x, labels, lam=1.1)
    for embeddings, given, name in ((x.detach() * math.nan, labels, "embeddings"), (x, labels[:-1], "labels")):
        with pytest.raises(ValueError, match=f"argument `{name}`: expected .*, got .+"):
            loss(embeddings, given)


def test_it_shows_itself_and_its_papers() -> None:
    loss = MetrixLoss.example(classes=7, dimension=6)
    assert "form=multi_similarity, weight=0.4" in repr(loss)
    assert "2106.04990" in citation(loss)
    assert "1904.06627" in citation(loss)
    assert form_of(tiled(MultiSimilarityLoss(alpha=3))) == PairForm.multi_similarity(positive_scale=3)


def proxies(wrap: Callable[[Objective], Objective] = lambda loss: loss, mixed: bool = True) -> ProxyAnchored:
    base = GenericPairLoss(PairForm.proxy_anchor(scale=8))
    objective = MetrixLoss(base, seed=2) if mixed else base
    generator = torch.Generator().manual_seed(0)
    return ProxyAnchored(wrap(objective), 5, 6, generator=generator).double()


def test_proxy_anchor_by_hand() -> None:
    x, labels = batch()
    found = proxies(mixed=False)
    s = nn.functional.normalize(found.proxies, dim=1) @ nn.functional.normalize(x, dim=1).T
    own = torch.arange(5)[:, None] == labels
    pull, push = ((-8 * (s - 0.1)).exp() * own).sum(1), ((8 * (s + 0.1)).exp() * ~own).sum(1)
    torch.testing.assert_close(found(x, labels), ((1 + pull).log() / 8 + (1 + push).log() / 8).mean())


@pytest.mark.parametrize("wrap", [tiled, across_ranks, lambda loss: loss])
def test_proxies_with_mixtures(wrap: Callable[[Objective], Objective]) -> None:
    x, labels = batch()
    loss = proxies(wrap)
    lam, kind = copy.deepcopy(proxies()).objective.draw()  # type: ignore[operator]
    own = torch.arange(5)[:, None] == labels
    form = PairForm.proxy_anchor(scale=8)
    mixed = explicit_losses(form, loss.proxies, x, own, ~own, lam, kind=kind).mean()
    value = loss(x, labels)
    torch.testing.assert_close(value, proxies(mixed=False)(x, labels) + 0.4 * mixed)
    value.backward()
    assert loss.proxies.grad.abs().sum(1).min() > 0  # type: ignore[union-attr]


def test_proxies_refuse_what_they_cannot_take() -> None:
    x, labels = batch()
    with pytest.raises(ValueError, match=r"argument `labels`: expected class indices in 0 \.\.\. 4, got"):
        proxies()(x, labels + 1)
    with pytest.raises(ValueError, match="argument `reference`: expected embeddings of shape"):
        proxies()(x[:, :4], labels)
    with pytest.raises(TypeError, match="argument `objective`"):
        ProxyAnchored(nn.Linear(2, 2), 3, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="argument `num_classes`: expected an integer >= 1"):
        ProxyAnchored(GenericPairLoss(), 0, 4)


def test_proxies_and_embeddings_may_differ_in_precision() -> None:
    x, labels = batch()
    loss = proxies(mixed=False).float()
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert loss(x.to(dtype), labels).item() == pytest.approx(loss(x, labels).item(), rel=1e-3)


def test_it_serves_another_library_and_is_served_by_it() -> None:
    hosts = pytest.importorskip("pytorch_metric_learning")
    from scorecraft.integrations.pytorch_metric_learning import MetricLearningLoss, from_metric_learning

    x, labels = batch(20)
    torch.testing.assert_close(MetricLearningLoss(fixed())(x, labels), fixed()(x, labels))
    y, others = batch(30, seed=1)
    there = MetricLearningLoss(fixed())(x, labels, ref_emb=y, ref_labels=others)
    torch.testing.assert_close(there, fixed()(x, labels, reference=y, reference_labels=others))
    host = hosts.losses.MultiSimilarityLoss(alpha=3, beta=20, base=0.4)
    form = PairForm.multi_similarity(positive_scale=3, negative_scale=20, threshold=0.4)
    wrapped = MetrixLoss(from_metric_learning(host), form=form, seed=4)
    ours = MetrixLoss(GenericPairLoss(form), seed=4)
    torch.testing.assert_close(wrapped(x, labels) - host(x, labels), ours(x, labels) - GenericPairLoss(form)(x, labels))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_equals_cpu(kind: Any) -> None:
    x, labels = batch(30)
    there = x.detach().cuda().requires_grad_()
    for normalised in (False, True):
        loss = MetrixLoss(MultiSimilarityLoss(), normalised=normalised)
        expected = loss.mixed_loss(x, labels, lam=0.3, kind=kind)
        found = loss.mixed_loss(there, labels.cuda(), lam=0.3, kind=kind)
        torch.testing.assert_close(found.cpu(), expected)
        (gradient,) = torch.autograd.grad(expected, x)
        torch.testing.assert_close(torch.autograd.grad(found, there)[0].cpu(), gradient, rtol=1e-8, atol=1e-11)


class Model(nn.Module):
    """A linear encoder and a loss, so that the gradients of both are averaged."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 6, bias=False).double()
        nn.init.eye_(self.encoder.weight)
        self.loss = loss

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.encoder(x), labels)


def loss_of(name: str, ranks: bool) -> nn.Module:
    wrap = across_ranks if ranks else lambda objective: objective
    if name == "proxies":
        return proxies(wrap)  # type: ignore[arg-type]
    base = MetrixLoss(MultiSimilarityLoss(), kind=name)  # type: ignore[arg-type]
    return wrap(0.5 * base + ThresholdConsistentMarginLoss())


def compare(rank: int, folder: str) -> None:
    errors = {}
    for name in (*KINDS, "proxies"):
        for sizes in ((12, 12), (7, 18)):
            x, labels = batch(sum(sizes), seed=2)
            part = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], sum(sizes))
            plain = Model(loss_of(name, False))
            model = DistributedDataParallel(Model(loss_of(name, True)))
            worst = 0.0
            for _ in range(2):  # the second call draws again
                plain.zero_grad()
                model.zero_grad()
                expected = plain(x.detach(), labels)
                expected.backward()
                value = model(x.detach()[part], labels[part])
                value.backward()
                mean = value.detach().clone()
                dist.all_reduce(mean)
                worst = max(worst, float((mean / 2 - expected).abs()))
                for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
                    worst = max(worst, float((mine.grad - theirs.grad).abs().max()))  # type: ignore[operator]
            errors[f"{name} {sizes}"] = worst
    if rank == 0:
        Path(folder, "errors.json").write_text(json.dumps(errors))


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    run_ranks(compare, str(tmp_path))
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert len(errors) == 6
    assert max(errors.values()) < 1e-10, errors
