"""The check values and properties of the ICNN score, its loss and its earlier form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.ranks import run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scorecraft.core import Pairs, across_ranks, citation, score_gradients, tiled
from scorecraft.similarity.multi_similarity import MultiSimilarityLoss
from scorecraft.similarity.susana import ICNNLoss, ICNNScore, earlier_icnn_score, icnn_loss, icnn_score

LINE = torch.tensor([0, 1, 3, 4, 10, 11, 12.5, 15.5], dtype=torch.float64)[:, None]
LINE_LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
APART = torch.tensor([0, 1, 2, 100, 101, 102], dtype=torch.float64)[:, None]
APART_LABELS = torch.tensor([0, 0, 0, 1, 1, 1])


def random_set(n: int = 40, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), torch.randint(0, classes, (n,), generator=generator)


@pytest.mark.parametrize(
    "points, labels, sizes, score, lambda_mean, gamma, loss",
    [
        (LINE, LINE_LABELS, {"neighbours": 2, "fetched": 5}, 0.582807241, 0.478114481, 0.6875, 0.539898781),
        (LINE, LINE_LABELS, {"neighbours": 4, "fetched": 6}, 0.491334835, 0.482669671, 0.5, 0.710629438),
        (LINE, LINE_LABELS, {}, 0.491334835, 0.482669671, 0.5, 0.710629438),
        (APART, APART_LABELS, {"neighbours": 2, "fetched": 4}, 0.996632738, 0.993265476, 1.0, 0.003372944),
    ],
)
def test_check_values(
    points: Tensor,
    labels: Tensor,
    sizes: dict[str, int],
    score: float,
    lambda_mean: float,
    gamma: float,
    loss: float,
) -> None:
    parts = icnn_score(points, labels, **sizes)
    assert parts.score.item() == pytest.approx(score, rel=1e-6)
    assert parts.lambda_mean.item() == pytest.approx(lambda_mean, rel=1e-6)
    assert parts.gamma.item() == pytest.approx(gamma, rel=1e-6)
    # The smallest loss is -log of a number near 1, known to nine digits.
    assert parts.loss.item() == pytest.approx(loss, rel=1e-6, abs=1e-9)
    assert ICNNLoss(**sizes)(points, labels).item() == pytest.approx(loss, rel=1e-6, abs=1e-9)
    matrix = -(points - points.T).abs()
    assert ICNNLoss(**sizes).on_scores(matrix, labels).item() == pytest.approx(loss, rel=1e-6, abs=1e-9)


def test_check_value_of_the_earlier_form() -> None:
    assert earlier_icnn_score(LINE, LINE_LABELS).score.item() == pytest.approx(0.755950078, rel=1e-6)


def by_hand(
    x: list[list[float]],
    labels: list[int],
    z: list[list[float]],
    others: list[int],
    neighbours: int,
    fetched: int | None,
    own: bool,
    drop_first: bool,
) -> ICNNScore:
    """The definition, one number at a time."""
    e, m = 1e-7, len(z)
    pure = neighbours + 2 >= m
    k = m - 2 if pure else neighbours
    wanted = min(k + 1 if fetched is None else fetched, m - 1 if own or drop_first else m)
    lists = []
    for i, point in enumerate(x):
        near = sorted(
            (math.sqrt(sum((a - b) ** 2 for a, b in zip(point, other, strict=True)) + 1e-6), others[j] == labels[i])
            for j, other in enumerate(z)
            if drop_first or not (own and i == j)
        )
        lists.append(near[1 : wanted + 1] if drop_first else near[:wanted])
    means, seen, tops, met = [], [], [], []
    farthest = max((d for row in lists for d, same in row[:k] if not same), default=0.0)
    for row in lists:
        u = min((d for d, same in row if not same), default=math.inf)
        ratios = [0.0 if u == math.inf else d / (u + e) for d, _ in row[:k]]
        scale = max(1.0, *ratios)
        flags = [same for _, same in row[:k]]
        means.append(sum(r / scale for r, same in zip(ratios, flags, strict=True) if same) / (sum(flags) + e))
        seen.append(any(flags))
        far = [d / (farthest + e) for d, same in row[:k] if not same]
        tops.append(sum(far) / (len(far) + e))
        met.append(bool(far))
    lambda_same = 1 - sum(means) / (sum(seen) + e)
    t = sum(tops) / (sum(met) + e)
    lambda_other = t if any(met) else abs(t - 1)
    gamma = 1.0 if pure else sum(same for row in lists for _, same in row[:k]) / (k * len(x))
    lambda_mean = (lambda_same + lambda_other) / 2
    parts = ((lambda_mean + gamma) / 2, lambda_same, lambda_other, lambda_mean, gamma)
    return ICNNScore(*(torch.tensor(part, dtype=torch.float64) for part in parts))


@pytest.mark.parametrize("drop_first", [False, True])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    "references, neighbours, fetched", [(25, 4, None), (25, 3, 9), (25, 4, 40), (6, 4, 5), (5, 4, 9)]
)
def test_equals_the_definition(
    own: bool, drop_first: bool, references: int, neighbours: int, fetched: int | None
) -> None:
    z, others = random_set(references, classes=3, seed=1)
    x, labels = (z, others) if own else random_set(17, classes=3)
    against = {} if own else {"reference": z, "reference_labels": others}
    found = icnn_score(x, labels, neighbours=neighbours, fetched=fetched, drop_first=drop_first, **against)
    expected = by_hand(x.tolist(), labels.tolist(), z.tolist(), others.tolist(), neighbours, fetched, own, drop_first)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.detach(), theirs, rtol=1e-10, atol=1e-12)
    loss = ICNNLoss(neighbours=neighbours, fetched=fetched, drop_first=drop_first)
    torch.testing.assert_close(loss(x, labels, **against).detach(), -expected.score.log())
    torch.testing.assert_close(
        icnn_loss(x, labels, neighbours=neighbours, fetched=fetched, drop_first=drop_first, **against).detach(),
        -expected.score.log(),
    )


def test_dropping_the_first_loses_the_true_nearest_reference() -> None:
    query, reference = torch.zeros(1, 2), torch.tensor([[0.1, 0.0], [3.0, 0.0], [4.0, 0.0], [5.0, 0.0], [9.0, 0.0]])
    given = {"reference": reference, "reference_labels": torch.tensor([0, 1, 1, 1, 1]), "neighbours": 1}
    label = torch.tensor([0])
    assert icnn_score(query, label, **given).gamma == 1
    assert icnn_score(query, label, drop_first=True, **given).gamma == 0


def test_with_the_points_themselves_dropping_the_first_is_leaving_them_out() -> None:
    x, labels = random_set()
    torch.testing.assert_close(icnn_score(x, labels), icnn_score(x, labels, drop_first=True))


def test_gradients_reach_points_and_reference() -> None:
    x, labels = random_set(20, classes=3)
    z, others = random_set(12, classes=3, seed=1)
    loss = ICNNLoss(neighbours=3, fetched=6)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (x,))
    assert torch.autograd.gradcheck(lambda x, z: loss(x, labels, reference=z, reference_labels=others), (x, z))


@pytest.mark.parametrize("drop_first", [False, True])
def test_the_gradient_is_that_of_the_score_matrix(drop_first: bool) -> None:
    """The few pairs of the blocks carry the whole gradient; the pulls say which."""
    x, labels = random_set()
    loss = ICNNLoss(fetched=8, drop_first=drop_first)
    (found,) = torch.autograd.grad(loss(x, labels), x)
    scores = -(x[:, None] - x).square().sum(dim=2).clamp(min=1e-30).sqrt()
    (expected,) = torch.autograd.grad(loss.on_scores(scores, labels), x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    pulls = score_gradients(loss, x, labels)
    assert (pulls != 0).sum(dim=1).max() <= 8


def test_purity_is_a_count_without_gradient() -> None:
    x, labels = random_set()
    assert not icnn_score(x, labels).gamma.requires_grad
    assert icnn_score(x, labels).lambda_same.requires_grad


def test_the_loss_falls_along_its_gradient() -> None:
    x, labels = random_set()
    loss = ICNNLoss()
    value = loss(x, labels)
    (gradient,) = torch.autograd.grad(value, x)
    assert loss(x - 1e-3 * gradient, labels) < value


def test_score_and_parts_lie_in_the_unit_interval_and_rise_with_separation() -> None:
    noise, labels = random_set(60)
    centres = torch.randn(5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scores = []
    for scale in (0.0, 1.0, 3.0, 30.0):
        parts = icnn_score(noise.detach() + scale * centres[labels], labels)
        assert all(0 <= part <= 1 for part in parts)
        scores.append(parts.score.item())
    assert scores == sorted(scores)
    assert scores[0] < 0.6 < 0.9 < scores[-1]


def test_order_and_scale_do_not_matter() -> None:
    x, labels = random_set()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(icnn_score(x[order], labels[order]), icnn_score(x, labels))
    torch.testing.assert_close(icnn_score(50 * x, labels), icnn_score(x, labels), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(icnn_score(x + 7, labels), icnn_score(x, labels))


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_one_class_gives_zero_loss_and_zero_gradient(n: int) -> None:
    x = random_set(n)[0]
    for loss in (
        ICNNLoss()(x, torch.zeros(n, dtype=torch.long)),
        ICNNLoss().on_scores(-torch.ones(n, n) * x.sum(), torch.zeros(n, dtype=torch.long)),
    ):
        assert loss.item() == 0
        assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))


def test_without_a_class_of_two_only_the_distances_between_classes_move() -> None:
    x = random_set(5)[0]
    parts = icnn_score(x, torch.arange(5))
    assert parts.lambda_same == 1
    assert parts.gamma == 1  # five points: k + 2 > n
    assert torch.isfinite(torch.autograd.grad(parts.loss, x)[0]).all()
    many = icnn_score(random_set(20)[0], torch.arange(20))
    assert many.lambda_same == 1
    assert many.gamma == 0


def test_exact_duplicates_stay_finite() -> None:
    x = torch.ones(8, 3, requires_grad=True)
    loss = ICNNLoss()(x, torch.arange(8) % 2)
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, x)[0]).all()


def test_a_score_of_nothing_is_clamped() -> None:
    zero = torch.zeros(())
    assert ICNNScore(zero, zero, zero, zero, zero).loss.item() == pytest.approx(-math.log(1e-7), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_as_float32(dtype: torch.dtype) -> None:
    x, labels = random_set()
    half = (1000 * x).to(dtype).detach().requires_grad_()  # squares overflow float16
    value = ICNNLoss()(half, labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, ICNNLoss()(half.float(), labels))
    assert torch.isfinite(torch.autograd.grad(value, half)[0]).all()


def test_it_adds_to_others_and_wraps() -> None:
    x, labels = random_set()
    loss, base = ICNNLoss(fetched=8), MultiSimilarityLoss()
    torch.testing.assert_close((base + 0.5 * loss)(x, labels), base(x, labels) + 0.5 * loss(x, labels))
    assert torch.equal(tiled(loss, block=7)(x, labels), loss(x, labels))
    assert torch.equal(across_ranks(loss)(x, labels), loss(x, labels))
    assert "2305.09062" in citation(loss)
    assert "fetched=8" in repr(loss)


def test_it_compiles_in_one_graph() -> None:
    x, labels = random_set()
    x = x.detach().float().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(ICNNLoss(), fullgraph=True, backend="aot_eager")
    found, expected = compiled(x, labels), ICNNLoss()(x, labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, x), torch.autograd.grad(expected, x))


class Model(nn.Module):
    """A linear encoder, and a loss against a reference that it encodes as well, where there is one."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 6, bias=False).double()
        nn.init.eye_(self.encoder.weight)
        self.loss = loss

    def forward(self, x: Tensor, labels: Tensor, **against: Tensor) -> Tensor:
        if against:
            against["reference"] = self.encoder(against["reference"])
        return self.loss(self.encoder(x), labels, **against)


def compare(rank: int, folder: str) -> None:
    errors = {}
    x, labels = random_set(33)
    z, others = random_set(21, seed=1)
    part, part_of_z = (slice(0, 9), slice(0, 11)) if rank == 0 else (slice(9, 33), slice(11, 21))
    for name in ("own", "reference"):
        whole = {} if name == "own" else {"reference": z.detach(), "reference_labels": others}
        mine = {key: value[part_of_z] for key, value in whole.items()}
        plain = Model(ICNNLoss(fetched=8))
        expected = plain(x.detach(), labels, **whole)
        expected.backward()
        spread = DistributedDataParallel(Model(across_ranks(ICNNLoss(fetched=8))))
        value = spread(x.detach()[part], labels[part], **mine)
        value.backward()
        mean = value.detach().clone()
        dist.all_reduce(mean)
        gradients = spread.module.encoder.weight.grad, plain.encoder.weight.grad
        errors[name] = [float((mean / 2 - expected.detach()).abs()), float((gradients[0] - gradients[1]).abs().max())]
    if rank == 0:
        Path(folder, "errors.json").write_text(json.dumps(errors))


def test_two_uneven_ranks_equal_one_process(tmp_path: Path) -> None:
    run_ranks(compare, str(tmp_path))
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert errors.keys() == {"own", "reference"}
    assert all(error < 1e-10 for pair in errors.values() for error in pair), errors


X, Y = random_set(10)[0].detach(), random_set(10)[1]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"embeddings": X[0]}, "argument `embeddings`: expected a floating-point tensor with 2 axes"),
        ({"embeddings": X * torch.nan}, "argument `embeddings`: expected finite values only"),
        ({"embeddings": X[:0], "labels": Y[:0]}, "argument `embeddings`: expected at least one row"),
        ({"labels": Y[:-1]}, "argument `labels`: expected 10 labels, one per embedding"),
        ({"labels": Y.double()}, "argument `labels`: expected integer labels"),
        ({"labels": Y[:, None]}, "argument `labels`: expected one integer label per embedding"),
        ({"reference": X}, "argument `reference_labels`: expected `reference` and `reference_labels` together"),
        ({"reference_labels": Y}, "argument `reference`: expected `reference` and `reference_labels` together"),
        ({"reference": X[:, :3], "reference_labels": Y}, r"argument `reference`: expected .*\[m, 6\]"),
        ({"neighbours": 0}, "argument `neighbours`: expected an integer >= 1"),
        ({"fetched": 3}, "argument `fetched`: expected at least neighbours = 4, got 3"),
        ({"fetched": 5.0}, "argument `fetched`: expected an integer >= 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(change: dict, message: str) -> None:
    call = {"embeddings": X, "labels": Y, **change}
    sizes = {name: call.pop(name) for name in ("neighbours", "fetched") if name in call}
    for attempt in (lambda: icnn_score(**call, **sizes), lambda: ICNNLoss(**sizes)(**call)):
        with pytest.raises(ValueError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, value",
    [("weights", torch.ones(10)), ("ignore", torch.zeros(10, dtype=torch.bool)), ("ids", torch.arange(10)),
     ("pairs", Pairs.from_labels(Y))],
)  # fmt: skip
def test_the_objective_refuses_what_a_set_has_no_use_for(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"argument `{name}`: expected none, ICNNLoss"):
        ICNNLoss()(X, Y, **{name: value})
    masks = Pairs.from_masks(torch.eye(10, dtype=torch.bool))
    with pytest.raises(ValueError, match="argument `pairs`: expected labels"):
        ICNNLoss().on_scores(torch.zeros(10, 10), pairs=masks)


def earlier_by_hand(x: Tensor, labels: Tensor, k: int, p: float, q: float, r: float) -> tuple[float, ...]:
    """The earlier form, one row at a time."""
    sums, purity, scaled_same, scaled_other = [], [], [], []
    for i in range(len(x)):
        order = [j for j in (x - x[i]).square().sum(dim=1).argsort().tolist() if j != i][:k]
        near = [(float((x[i] - x[j]).square().sum()) + 1e-6) ** 0.5 for j in order]
        scaled = [(d - near[0]) / (near[-1] - near[0] + 1e-6) for d in near]
        same = [bool(labels[i] == labels[j]) for j in order]
        sums.append(sum(1 - s if agrees else s for s, agrees in zip(scaled, same, strict=True)))
        purity.append((sum(same) / k) ** (1 / r))
        for s, agrees in zip(scaled, same, strict=True):
            (scaled_same if agrees else scaled_other).append(s)
    lambda_mean = sum((s / (max(sums) + 1e-6)) ** (1 / p) for s in sums) / len(sums)
    variances = [sum((s - sum(v) / len(v)) ** 2 for s in v) / len(v) for v in (scaled_same, scaled_other)]
    omega, gamma = (1 - sum(variances)) ** (1 / q), sum(purity) / len(purity)
    return (lambda_mean + gamma) / 2, lambda_mean, omega, gamma


@pytest.mark.parametrize("k, powers", [(5, (2.0, 2.0, 2.0)), (3, (1.0, 3.0, 4.0))])
def test_the_earlier_form_equals_its_definition(k: int, powers: tuple[float, float, float]) -> None:
    x, labels = random_set(25, classes=3)
    p, q, r = powers
    found = earlier_icnn_score(x, labels, neighbours=k, lambda_power=p, omega_power=q, gamma_power=r)
    assert [part.item() for part in found] == pytest.approx(earlier_by_hand(x.detach(), labels, k, p, q, r), rel=1e-9)
    assert not found.score.requires_grad


def test_the_earlier_form_takes_two_points() -> None:
    assert earlier_icnn_score(X[:2], Y[:2], neighbours=9).score.isfinite()


def test_bad_input_of_the_earlier_form_is_refused() -> None:
    for change, message in (
        ({"embeddings": X[:1], "labels": Y[:1]}, "argument `embeddings`: expected at least two points"),
        ({"neighbours": 0}, "argument `neighbours`: expected an integer >= 1"),
        ({"lambda_power": 0}, "argument `lambda_power`: expected a finite number > 0"),
        ({"omega_power": -1}, "argument `omega_power`: expected a finite number > 0"),
        ({"gamma_power": math.inf}, "argument `gamma_power`: expected a finite number > 0"),
        ({"labels": Y[:, None]}, "argument `labels`: expected one integer label"),
    ):
        with pytest.raises(ValueError, match=message):
            earlier_icnn_score(**{"embeddings": X, "labels": Y, **change})


def test_a_large_set_is_measured_in_little_memory() -> None:
    """No tensor of a measurement is anywhere near `n x n`."""
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            nonlocal largest
            result = function(*arguments, **(options or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    x, labels = torch.randn(6000, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6000) % 300
    with torch.no_grad(), Watch():
        icnn_score(x, labels)
    assert largest <= 512 * 4096
