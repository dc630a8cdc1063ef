import io

import pytest
import torch
from drawn_source import DrawnSource
from rich.console import Console

from mira.evaluation.features import extract_features
from mira.evaluation.floors import ShiftedSource, raw_pixels
from mira.evaluation.knn import knn_accuracy
from mira.evaluation.protocol import evaluate_knn, prototype_assignments
from mira.evaluation.results import LEARNED, PIXELS, RANDOM
from mira.evaluation.table import kinds, print_results, tabulate
from mira.model import BackboneSettings, Preprocessing, create_backbone

GREY = Preprocessing(size=16, resize=16, channels=1, mean=(0.5,), std=(0.25,))
TRAIN, TEST = DrawnSource(200, seed=0, broken=(7,)), DrawnSource(80, seed=1)


def untrained() -> torch.nn.Module:
    settings = BackboneSettings(name="resnet18", channels=1, options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]})
    return create_backbone(settings, crop_size=16)


@pytest.fixture(scope="module")
def results():
    torch.manual_seed(0)
    backbone = untrained()
    backbone.requires_grad_(False)
    prototypes = torch.randn(6, backbone.num_features)
    return backbone, evaluate_knn(
        backbone,
        TRAIN,
        TEST,
        preprocessing=GREY,
        ks=(5, 20, 100),
        fractions=(1.0, 0.1),
        seed=3,
        floors=True,
        untrained=untrained,
        shift=2,
        clusters=True,
        prototype_logits=lambda features: features @ prototypes.T,
        checkpoint="step 9",
    )


def pick(results, **wanted):
    return [one for one in results if all(getattr(one, name) == value for name, value in wanted.items())]


def test_every_setting_is_evaluated_once_for_every_kind_of_features(results) -> None:
    _, found = results
    for kind in (LEARNED, RANDOM, PIXELS):
        for shift in (0, 2):
            settings = [(one.fraction, one.k) for one in pick(found, features=kind, shift=shift, protocol="k-NN")]
            assert settings == [(fraction, k) for fraction in (1.0, 0.1) for k in (5, 20, 100)]
            assert [one.metric for one in pick(found, features=kind, shift=shift, protocol="k-means")] == [
                "NMI",
                "ARI",
                "Hungarian accuracy",
            ]
    assert {one.features for one in pick(found, protocol="prototypes")} == {LEARNED}
    assert {(one.k, one.metric) for one in pick(found, protocol="prototypes")} == {(6, "NMI"), (6, "purity")}
    assert all(one.data == "drawn:1" and one.seed == 3 and one.checkpoint == "step 9" for one in found)
    assert {(one.bank_size, one.query_size, one.unreadable) for one in pick(found, protocol="k-NN", fraction=1.0)} == {
        (199, 80, 1)
    }


def test_values_are_those_of_the_functions_called_one_by_one(results) -> None:
    backbone, found = results
    bank = extract_features(backbone, TRAIN, preprocessing=GREY)
    for shift, source in ((0, TEST), (2, ShiftedSource(TEST, 2, 3))):
        queries = extract_features(backbone, source, preprocessing=GREY)
        expected = knn_accuracy(bank.features, bank.labels, queries.features, queries.labels, k=[5, 20])
        for k, value in expected.items():
            (one,) = pick(found, features=LEARNED, protocol="k-NN", shift=shift, fraction=1.0, k=k)
            assert one.value == value
    bank, queries = raw_pixels(TRAIN, TEST, preprocessing=GREY)
    expected = knn_accuracy(bank.features, bank.labels, queries.features, queries.labels, k=[5])
    assert pick(found, features=PIXELS, protocol="k-NN", shift=0, fraction=1.0, k=5)[0].value == expected[5]


def test_k_beyond_the_labelled_pictures_is_left_out_with_a_note(results) -> None:
    _, found = results
    for one in pick(found, protocol="k-NN", fraction=0.1, k=100):
        assert one.value is None
        assert one.note == f"k 100: left out with 10 % of the labels, which are {one.bank_size} pictures."
        assert 17 <= one.bank_size <= 23


def test_the_table_fits_80_columns_and_marks_the_best(results) -> None:
    _, found = results
    rows = tabulate(found)
    assert kinds(rows) == [PIXELS, RANDOM, LEARNED]
    assert all("100" not in row.setting for row in rows if "10 % of labels" in row.group)
    for row in rows:
        if len(row.cells) > 1:
            highest = max(round(cell.value, 1) for cell in row.cells.values())
            assert all((round(row.cells[kind].value, 1) == highest) == (kind in row.best) for kind in row.cells)
    text = io.StringIO()
    print_results(found, Console(file=text, width=80, force_terminal=True, color_system=None))
    printed = text.getvalue()
    assert max(map(len, printed.splitlines())) <= 80
    assert f"{pick(found, features=LEARNED, fraction=1.0, k=5, shift=0)[0].value:.1f}" in printed
    assert "k-NN, 10 % of labels" in printed
    assert "moved by ≤ 2 px" in printed
    assert "k 100: left out with 10 % of the labels" in printed


def test_prototype_assignments_are_the_highest_logits() -> None:
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assigned, count = prototype_assignments(features, lambda part: part * 2, batch_size=7)
    assert torch.equal(assigned, features.argmax(dim=1))
    assert count == 4


def test_mistakes_get_a_sentence() -> None:
    bare, other, uniform = DrawnSource(5), DrawnSource(5), DrawnSource(5)
    bare.labels = None
    other.classes = ("cat", "dog")
    uniform.labels = uniform.labels * 0
    run = lambda train, test, **more: evaluate_knn(  # noqa: E731
        untrained(), train, test, preprocessing=GREY, ks=(1,), **more
    )
    with pytest.raises(ValueError, match=r"the training pictures of drawn:0 have none.*labels='folder'"):
        run(bare, TEST)
    with pytest.raises(ValueError, match="the test pictures of drawn:0 have none"):
        run(TRAIN, bare)
    with pytest.raises(ValueError, match=r"different classes \(flat, steep, rising, ... 4 in all and cat, dog\)"):
        run(TRAIN, other)
    with pytest.raises(ValueError, match="all 5 labelled pictures are of one class"):
        run(uniform, TEST)
    with pytest.raises(ValueError, match="fraction must be above 0"):
        run(TRAIN, TEST, fractions=(0.0,))
    with pytest.raises(ValueError, match="must each name at least one value"):
        run(TRAIN, TEST, fractions=())
