import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_source import DrawnSource
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from mira.evaluation.logistic import (
    Examples,
    LogisticSettings,
    _note,
    evaluate_logistic,
    foreseen,
    logistic_sweep,
    published_penalties,
)
from mira.evaluation.logistic_curvature import ClassBlocks
from mira.evaluation.logistic_solver import LogisticProblem, fit_logistic
from mira.evaluation.metrics import mean_average_precision, top_k_accuracy
from mira.evaluation.subject import Compute, Subject
from mira.model.preprocessing import Preprocessing


def drawn(count: int, width: int, classes: int, *, seed: int, noise: float = 1.0, decay: float = 2.0) -> Examples:
    """Overlapping classes; features off centre, whose axes differ as much in scale as those of networks do."""
    common = torch.Generator().manual_seed(99)
    centres = torch.randn(classes, width, generator=common, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(width, width, generator=common, dtype=torch.float64)).Q
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    points = centres[labels] + noise * 3 * torch.randn(count, width, generator=generator, dtype=torch.float64)
    return Examples(points * torch.logspace(0, -decay, width, dtype=torch.float64) @ turn + 0.7, labels)


def scikit(examples: Examples, l2: float) -> LogisticRegression:
    model = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-11, max_iter=10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its last steps are limited by rounding
        return model.fit(examples.features.numpy(), examples.targets.numpy())


def objective(weight: torch.Tensor, bias: torch.Tensor, examples: Examples, l2: float) -> torch.Tensor:
    """As the head of `logistic_solver` states it, in the features' own coordinates."""
    logits = examples.features @ weight.T + bias
    if examples.targets.ndim == 1:
        loss = cross_entropy(logits, examples.targets, reduction="sum")
    else:
        loss = binary_cross_entropy_with_logits(logits, examples.targets.to(logits.dtype), reduction="sum")
    return loss + l2 / 2 * weight.square().sum()


@pytest.mark.parametrize(
    ("l2", "count", "width"),
    [(1e4, 700, 12), (30.0, 700, 12), (1.0, 700, 12), (1e-2, 700, 12), (1e-5, 700, 12), (30.0, 40, 90), (0.1, 40, 90)],
)
def test_coefficients_are_scikit_learns(l2: float, count: int, width: int) -> None:
    examples = drawn(count, width, 5, seed=0)
    ours, theirs = fit_logistic(*examples, l2=l2, tolerance=1e-9), scikit(examples, l2)
    assert ours.converged
    scale = np.abs(theirs.coef_).max()
    np.testing.assert_allclose(ours.weight, theirs.coef_, atol=1e-5 * scale)
    np.testing.assert_allclose(ours.bias, theirs.intercept_ - theirs.intercept_.mean(), atol=1e-5 * max(scale, 1))
    np.testing.assert_allclose(
        ours.logits(examples.features).softmax(dim=1), theirs.predict_proba(examples.features), atol=1e-6
    )


def test_two_classes_are_one_logistic_function_of_half_the_penalty() -> None:
    examples = drawn(400, 8, 2, seed=0)
    ours = fit_logistic(*examples, l2=3.0, tolerance=1e-9)
    theirs = scikit(examples, 3.0 / 2)
    np.testing.assert_allclose(ours.weight[1] - ours.weight[0], theirs.coef_[0], atol=1e-6)


def test_several_labels_are_one_regression_for_each_class() -> None:
    features, labels = drawn(500, 10, 4, seed=0)
    shown = one_hot(labels, 4).bool() | (features[:, :1] > features[:, :1].mean() + 1)
    ours = fit_logistic(features, shown, l2=0.3, tolerance=1e-9)
    for k in range(4):
        theirs = scikit(Examples(features, shown[:, k]), 0.3)
        np.testing.assert_allclose(ours.weight[k], theirs.coef_[0], atol=1e-5)
        np.testing.assert_allclose(ours.bias[k], theirs.intercept_[0], atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(4, 60),
    width=st.integers(1, 30),
    classes=st.integers(2, 5),
    power=st.floats(-5, 5),
    several=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_gradient_vanishes_at_the_solution(count, width, classes, power, several, seed) -> None:
    features, labels = drawn(count, width, classes, seed=seed, decay=1.0)
    labels[0], labels[1] = 0, 1
    examples = Examples(features, one_hot(labels, classes).bool() if several else labels)
    l2 = 10**power
    fit = fit_logistic(*examples, l2=l2, num_classes=classes, tolerance=1e-8)
    weight, bias = (part.clone().requires_grad_() for part in (fit.weight, fit.bias))
    value = objective(weight, bias, examples, l2)
    value.backward()
    assert fit.converged
    assert float(bias.grad.abs().max()) < 1e-6 * float(value.detach())
    assert float(weight.grad.norm()) < 1e-6 * (float((l2 * weight.detach()).norm()) + float(value.detach()))


def test_no_other_weights_are_better_and_any_start_ends_there() -> None:
    examples = drawn(300, 6, 3, seed=0)
    fit = fit_logistic(*examples, l2=0.1, tolerance=1e-9)
    least = float(objective(fit.weight, fit.bias, examples, 0.1))
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-1, 10.0):
        moved = fit.weight + size * torch.randn(fit.weight.shape, generator=generator, dtype=torch.float64)
        assert float(objective(moved, fit.bias, examples, 0.1)) > least
    start = fit_logistic(*examples, l2=1e4, tolerance=1e-3)
    again = fit_logistic(*examples, l2=0.1, tolerance=1e-9, start=start)
    torch.testing.assert_close(again.weight, fit.weight, atol=1e-5, rtol=0)


def test_scale_of_the_features_changes_nothing_but_the_weights() -> None:
    features, labels = drawn(300, 6, 3, seed=0)
    fit = fit_logistic(features, labels, l2=0.1)
    large = fit_logistic(features * 1000, labels, l2=0.1 * 1000**2)
    assert large.iterations == fit.iterations
    torch.testing.assert_close(large.weight * 1000, fit.weight)


def test_ill_conditioned_features_need_few_iterations() -> None:
    examples = drawn(500, 40, 4, seed=0, decay=4.0)  # condition number 10^8
    assert fit_logistic(*examples, l2=1e-3).iterations < 100


@pytest.mark.parametrize("several", [False, True])
def test_under_weak_penalties_blocks_of_the_hessian_need_fewer_iterations(
    several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = drawn(2000, 100, 5, seed=0)
    examples = Examples(features, one_hot(labels, 5).bool() if several else labels)
    blocks = fit_logistic(*examples, l2=1e-6)
    monkeypatch.setattr(ClassBlocks, "fit_into", lambda *_: False)
    diagonal = fit_logistic(*examples, l2=1e-6, max_iterations=3000)
    assert blocks.converged
    assert diagonal.converged
    assert blocks.iterations < 0.6 * diagonal.iterations
    least, other = (float(objective(fit.weight, fit.bias, examples, 1e-6)) for fit in (blocks, diagonal))
    assert least == pytest.approx(other, rel=1e-6)


def test_blocks_are_those_of_the_hessian_and_a_class_without_curvature_is_divided_all_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, spread, vector, penalty = (
        torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in ((30, 4), (3, 30), (3, 4), (4,))
    )
    spread[2], penalty[-1] = 0, 0
    divided = ClassBlocks(inputs, spread).divide(penalty)(vector)
    assert divided.isfinite().all()
    for row in (0, 1):
        block = inputs.T @ (spread[row, :, None] * inputs) + penalty.diag()
        torch.testing.assert_close(block @ divided[row], vector[row], rtol=0, atol=1e-3)
    torch.testing.assert_close(divided[2, :3], vector[2, :3] / penalty[:3], rtol=1e-4, atol=0)


class TestSweep:
    train, validation, test = (drawn(count, 24, 6, seed=seed) for seed, count in enumerate((1200, 600, 4000)))

    def test_every_accuracy_is_within_a_tenth_of_a_point_of_scikit_learns(self) -> None:
        single = [Examples(part.features.float(), part.targets) for part in (self.train, self.test)]
        problem = LogisticProblem(*single[0])
        fits, spread = {}, []
        for l2 in sorted(published_penalties(), reverse=True):
            fit = fits[l2] = problem.fit(l2, start=foreseen(l2, fits))
            ours = top_k_accuracy(fit.logits(single[1].features), single[1].targets)
            theirs = 100 * scikit(self.train, l2).score(self.test.features, self.test.targets)
            assert fit.converged
            assert abs(ours - theirs) <= 0.1
            spread.append(ours)
        assert max(spread) - min(spread) > 5  # the penalty matters

    def test_chosen_on_validation_refitted_on_both_measured_on_test(self) -> None:
        found = logistic_sweep(self.train, self.validation, self.test, penalties=(100.0, 1e-3, 1.0), tolerance=1e-8)
        assert found.penalties == (100.0, 1e-3, 1.0)
        values = {l2: 100 * scikit(self.train, l2).score(*self.validation) for l2 in found.penalties}
        assert found.validation == pytest.approx(tuple(values.values()), abs=0.2)
        assert found.chosen == max(sorted(values), key=values.__getitem__)
        both = Examples(*(torch.cat(pair) for pair in zip(self.train, self.validation, strict=True)))
        refitted = scikit(both, found.chosen)
        np.testing.assert_allclose(found.fit.weight, refitted.coef_, atol=1e-4)
        assert found.value == pytest.approx(100 * refitted.score(*self.test), abs=0.05)
        assert found.unconverged == ()

    def test_of_equally_good_penalties_the_smallest(self) -> None:
        easy = Examples(torch.tensor([[0.0], [1.0]] * 5), torch.tensor([0, 1] * 5))
        assert logistic_sweep(easy, easy, easy, penalties=(1e-2, 1.0, 1e-3)).chosen == 1e-3

    def test_real_digits(self) -> None:
        digits = load_digits()
        features, labels = torch.from_numpy(digits.data).float(), torch.from_numpy(digits.target).long()
        parts = [Examples(features[start::3], labels[start::3]) for start in range(3)]
        found = logistic_sweep(*parts, penalties=published_penalties(12))
        both = Examples(*(torch.cat(pair).double() for pair in zip(parts[0], parts[1], strict=True)))
        theirs = scikit(Examples(both.features, both.targets.long()), found.chosen)
        assert found.value == pytest.approx(100 * theirs.score(*parts[2]), abs=0.2)  # one picture
        assert found.value > 94

    def test_several_labels_with_mean_average_precision(self) -> None:
        train, validation, test = (
            Examples(part.features, one_hot(part.targets, 6).bool())
            for part in (self.train, self.validation, self.test)
        )
        found = logistic_sweep(train, validation, test, metric=mean_average_precision, penalties=(1e5, 1.0, 1e-4))
        assert found.chosen == 1e-4
        both = torch.cat([train.features, validation.features]), torch.cat([train.targets, validation.targets])
        each = [scikit(Examples(both[0], both[1][:, k]), 1e-4).decision_function(test.features) for k in range(6)]
        scores = torch.from_numpy(np.stack(each, axis=1))
        assert found.value == pytest.approx(mean_average_precision(scores, test.targets), abs=0.05)

    def test_fits_lead_on_to_the_next_one(self) -> None:
        problem = LogisticProblem(*drawn(400, 120, 6, seed=0))  # separable
        fits, iterations, last = {}, [0, 0], None
        for l2 in sorted(published_penalties(), reverse=True):
            fits[l2] = problem.fit(l2, start=foreseen(l2, fits))
            last = problem.fit(l2, start=last)
            iterations = [iterations[0] + fits[l2].iterations, iterations[1] + last.iterations]
        assert iterations[0] < iterations[1] / 2
        # A parabola passes through the points that make it.
        torch.testing.assert_close(foreseen(l2, fits).weight, fits[l2].weight)

    def test_stopping_early_is_told(self) -> None:
        found = logistic_sweep(self.train, self.validation, self.test, penalties=(1e-6,), max_iterations=2)
        assert found.unconverged == (1e-6,)


X, Y = torch.eye(4), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: fit_logistic(X[:0], Y[:0], l2=1.0), "there are no pictures"),
        (lambda: fit_logistic(X, Y[:3], l2=1.0), "4 pictures and labels for 3"),
        (lambda: fit_logistic(X * torch.nan, Y, l2=1.0), "hold NaN or infinity"),
        (lambda: fit_logistic(X, Y * 0 + 2, l2=1.0), r"all 4 labelled pictures are of one class \(number 2\)"),
        (lambda: fit_logistic(X, Y - 1, l2=1.0), "labels run from -1 to 1"),
        (lambda: fit_logistic(X, Y, l2=1.0, num_classes=2), r"labels run from 0 to 2: .* in 0..1"),
        (lambda: fit_logistic(X, Y, l2=0.0), "l2 and tolerance must be above 0"),
        (lambda: fit_logistic(X, torch.empty(4, 0, dtype=torch.bool), l2=1.0), "no classes to tell apart"),
        (lambda: logistic_sweep(*[Examples(X, Y)] * 3, penalties=()), "penalties names no value"),
        (lambda: logistic_sweep(*[Examples(X, Y)] * 3, penalties=(0.0, 1.0)), "a penalty must be above 0"),
        (lambda: logistic_sweep(Examples(X, Y), Examples(X[:0], Y[:0]), Examples(X, Y)), "no validation pictures"),
        (lambda: logistic_sweep(*[Examples(X, Y)] * 2, Examples(X[:, :2], Y)), "4 wide and test features 2"),
    ],
)
def test_mistakes_get_a_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


class TestEvaluate:
    preprocessing = Preprocessing(size=16, resize=16, channels=1, mean=(0.5,), std=(0.25,))
    settings = LogisticSettings(penalties=9)

    def subject(self) -> Subject:
        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten()
        )
        return Subject("small", backbone.train(), self.preprocessing)

    def test_on_pictures_and_the_backbone_stays_as_it_was(self) -> None:
        subject = self.subject()
        before = {name: value.clone() for name, value in subject.backbone.state_dict().items()}
        [score] = evaluate_logistic(
            subject, DrawnSource(300), DrawnSource(200, seed=1), self.settings, seed=0, compute=Compute()
        )
        assert score.metric == "top-1"
        assert score.value > 70
        assert (score.train_size, score.test_size) == (300, 200)
        assert score.settings["penalties"] == 9
        assert score.chosen["l2"] in published_penalties(9)
        assert subject.backbone.training
        assert all(torch.equal(value, before[name]) for name, value in subject.backbone.state_dict().items())

    def test_mistakes_get_a_sentence(self) -> None:
        unlabelled, one_class, few = DrawnSource(20), DrawnSource(20), DrawnSource(4)
        unlabelled.labels = None
        one_class.labels[:] = 1
        few.labels = np.arange(4)
        for train, test, sentence in [
            (unlabelled, DrawnSource(9), "logistic regression needs labels and the training pictures"),
            (DrawnSource(9), unlabelled, "needs labels and the test pictures"),
            (one_class, DrawnSource(9), "are of one class"),
            (few, DrawnSource(9), "at least one class needs two pictures"),
            (DrawnSource(9), DrawnSource(0), "has no pictures to evaluate"),
        ]:
            with pytest.raises(ValueError, match=sentence):
                evaluate_logistic(self.subject(), train, test, self.settings, seed=0, compute=Compute())


@pytest.mark.parametrize(
    ("unconverged", "words"),
    [((), ""), ((0.1,), "under 1 penalty, not the chosen one"), ((0.1, 2.0), "2 penalties, the chosen one among them")],
)
def test_fits_that_ended_early_are_told_of(unconverged: tuple[float, ...], words: str) -> None:
    problem = drawn(40, 3, 2, seed=0)
    sweep = logistic_sweep(problem, problem, problem, penalties=(2.0,))
    assert words in _note(replace(sweep, unconverged=unconverged), 1000)
