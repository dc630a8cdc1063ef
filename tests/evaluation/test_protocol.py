"""k-NN and clusters as protocols, and the runner that calls any protocol on a backbone and its floors."""

import io
import json
from dataclasses import replace

import pytest
import torch
from drawn_source import DrawnSource
from rich.console import Console

from mira.evaluation.clusters import ClusterSettings, evaluate_clusters, prototype_assignments
from mira.evaluation.floors import ShiftedSource, raw_pixels
from mira.evaluation.knn import KnnSettings, evaluate_knn, knn_accuracy
from mira.evaluation.protocols import find_protocols, read_settings
from mira.evaluation.results import LEARNED, PIXELS, RANDOM
from mira.evaluation.runner import run_protocols
from mira.evaluation.subject import Compute, Subject
from mira.evaluation.table import kinds, print_results, tabulate
from mira.model import BackboneSettings, Preprocessing, create_backbone
from mira.model.head import PrototypeLogits

GREY = Preprocessing(size=16, resize=16, channels=1, mean=(0.5,), std=(0.25,))
TRAIN, TEST = DrawnSource(200, seed=0, broken=(7,)), DrawnSource(80, seed=1)


def untrained() -> torch.nn.Module:
    settings = BackboneSettings(name="resnet18", channels=1, options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]})
    return create_backbone(settings, crop_size=16)


def subject() -> Subject:
    torch.manual_seed(0)
    backbone = untrained().requires_grad_(False)
    head = PrototypeLogits(torch.nn.Identity(), torch.randn(6, 8), temperature=0.1)
    return Subject(LEARNED, backbone, GREY, "step 9", head, untrained)


def run(names: str, values: dict, **more):
    chosen = find_protocols(names)
    settings = read_settings(chosen, values)
    one = more.pop("subject", None) or subject()
    pictures = more.pop("pictures", (TRAIN, TEST))
    more.setdefault("compute", Compute())
    return run_protocols(one, pictures, {protocol: settings[protocol.name] for protocol in chosen}, **more)


@pytest.fixture(scope="module")
def results():
    return run("knn,clusters", {"k": (5, 20, 100), "fractions": (1.0, 0.1), "shift": 2}, seeds=(3,), floors=True)


def pick(results, **wanted):
    """The results whose field or setting has each value."""
    fits = lambda one, name: getattr(one, name, None) if hasattr(one, name) else one.settings.get(name)  # noqa: E731
    return [one for one in results if all(fits(one, name) == value for name, value in wanted.items())]


def test_every_setting_is_evaluated_once_for_every_kind_of_features(results) -> None:
    for kind in (LEARNED, RANDOM, PIXELS):
        for shift in (0, 2):
            knn = pick(results, features=kind, shift=shift, protocol="knn")
            assert [(one.settings["fraction"], one.settings["k"]) for one in knn] == [
                (fraction, k) for fraction in (1.0, 0.1) for k in (5, 20, 100)
            ]
            found = pick(results, features=kind, shift=shift, clusters="k-means")
            assert [one.metric for one in found] == ["NMI", "AMI", "ARI", "Hungarian accuracy"]
    prototypes = pick(results, clusters="prototypes")
    assert {one.features for one in prototypes} == {LEARNED}
    assert {one.metric for one in prototypes} == {"NMI", "AMI", "ARI", "Hungarian accuracy", "purity"}
    assert {one.settings["k"] for one in prototypes} == {6}
    assert all(one.seed == 3 and one.seconds >= 0 and one.time for one in results)
    assert {one.data for one in pick(results, protocol="knn")} == {"drawn:1, learned from drawn:0"}
    assert {one.data for one in pick(results, protocol="clusters")} == {"drawn:1"}
    sizes = {(one.train_size, one.test_size, one.unreadable) for one in pick(results, protocol="knn", fraction=1.0)}
    assert sizes == {(199, 80, 1)}
    assert {one.checkpoint for one in pick(results, features=LEARNED)} == {"step 9"}
    assert {one.versions["torch"].partition("+")[0] for one in results} == {torch.__version__.partition("+")[0]}


def test_values_are_those_of_the_functions_called_one_by_one(results) -> None:
    compute = Compute()
    for kind, one in ((LEARNED, subject()), (PIXELS, raw_pixels(TRAIN, GREY, compute))):
        bank = compute.features(one, TRAIN, "")
        for shift, source in ((0, TEST), (2, ShiftedSource(TEST, 2, 3))):
            queries = compute.features(one, source, "")
            expected = knn_accuracy(bank.features, bank.labels, queries.features, queries.labels, k=[5, 20])
            for k, value in expected.items():
                (found,) = pick(results, features=kind, protocol="knn", shift=shift, fraction=1.0, k=k)
                assert found.value == value


def test_k_beyond_the_labelled_pictures_is_left_out_with_a_note(results) -> None:
    for one in pick(results, protocol="knn", fraction=0.1, k=100):
        assert one.value is None
        assert one.note == f"k 100: left out with 10 % of the labels, which are {one.train_size} pictures."
        assert 17 <= one.train_size <= 23


def test_the_table_fits_80_columns_and_marks_the_best(results) -> None:
    rows = tabulate(results)
    assert kinds(rows) == [PIXELS, RANDOM, LEARNED]
    assert all("100" not in row.setting for row in rows if "10 % of labels" in row.group)
    for row in rows:
        if len(row.cells) > 1:
            highest = max(round(cell.mean, 1) for cell in row.cells.values())
            assert all((round(row.cells[kind].mean, 1) == highest) == (kind in row.best) for kind in row.cells)
    text = io.StringIO()
    print_results(results, Console(file=text, width=80, force_terminal=True, color_system=None))
    printed = text.getvalue()
    assert max(map(len, printed.splitlines())) <= 80
    assert f"{pick(results, features=LEARNED, fraction=1.0, k=5, shift=0)[0].value:.1f}" in printed
    assert "k-NN, 10 % of labels" in printed
    assert "moved by ≤ 2 px" in printed
    assert "k 100: left out with 10 % of the labels" in printed


def test_prototype_assignments_are_the_highest_logits() -> None:
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assigned, count = prototype_assignments(features, lambda part: part * 2, batch_size=7)
    assert torch.equal(assigned, features.argmax(dim=1))
    assert count == 4


class TestRunner:
    values = {"k": (5,), "fractions": (0.1,)}  # noqa: RUF012

    def test_each_seed_draws_anew_and_has_a_random_backbone_of_its_own(self) -> None:
        found = run("knn", self.values, seeds=(0, 1, 2), floors=True)
        assert [one.seed for one in pick(found, features=LEARNED)] == [0, 1, 2]
        assert [one.seed for one in pick(found, features=RANDOM)] == [0, 1, 2]
        assert len({one.checkpoint_hash for one in pick(found, features=RANDOM)}) == 3
        assert len({one.checkpoint_hash for one in pick(found, features=LEARNED)}) == 1
        (row,) = tabulate(found)
        values = [one.value for one in pick(found, features=LEARNED)]
        assert row.cells[LEARNED].mean == pytest.approx(sum(values) / 3)
        assert row.cells[LEARNED].deviation == pytest.approx(torch.tensor(values).std().item(), rel=1e-4)
        assert " ± " in str(row.cells[LEARNED])

    def test_what_is_there_is_kept_when_a_later_protocol_fails(self) -> None:
        kept: list = []
        uniform = DrawnSource(20)
        uniform.labels = uniform.labels * 0
        with pytest.raises(ValueError, match="all 20 labelled pictures of drawn:0 are of one class"):
            run("health,knn", self.values, pictures=(uniform, TEST), keep=kept.extend)
        assert {one.protocol for one in kept} == {"health"}

    def test_what_is_finished_is_taken_over_and_anything_else_is_not(self) -> None:
        first = run("knn", self.values, seeds=(0,))
        finished = {first[0].task: [replace(first[0], note="from before")]}
        again = run("knn", self.values, seeds=(0, 1), finished=finished)
        assert [one.note for one in again] == ["from before", ""]
        for changed in (
            run("knn", self.values | {"temperature": 0.1}, finished=finished),
            run("knn", self.values, finished=finished, pictures=(TRAIN, DrawnSource(81, seed=1))),
            run("knn", self.values, finished=finished, subject=replace(subject(), backbone=untrained())),
        ):
            assert [one.note for one in changed] == [""]

    def test_settings_are_plain_json_and_complete(self) -> None:
        (one,) = run("knn", self.values)
        assert json.loads(json.dumps(one.settings)) == one.settings
        assert one.settings == {"k": 5, "temperature": 0.07, "fraction": 0.1, "shift": 0}

    def test_without_a_way_to_build_the_architecture_there_is_a_warning_and_no_random_floor(self) -> None:
        with pytest.warns(UserWarning, match="no random backbone beside MIRA"):
            found = run("knn", self.values, floors=True, subject=replace(subject(), untrained=None))
        assert {one.features for one in found} == {LEARNED, PIXELS}


def test_mistakes_get_a_sentence() -> None:
    bare, other, uniform = DrawnSource(5), DrawnSource(5), DrawnSource(5)
    bare.labels = None
    other.classes = ("cat", "dog")
    uniform.labels = uniform.labels * 0
    compute = Compute()
    for evaluate, settings in ((evaluate_knn, KnnSettings(k=(1,))), (evaluate_clusters, ClusterSettings())):
        call = lambda train, test: evaluate(subject(), train, test, settings, seed=0, compute=compute)  # noqa: B023, E731
        with pytest.raises(ValueError, match=r"the training pictures of drawn:0 have none.*labels='folder'"):
            call(bare, TEST)
        with pytest.raises(ValueError, match="the test pictures of drawn:0 have none"):
            call(TRAIN, bare)
        with pytest.raises(ValueError, match=r"different classes \(flat, steep, rising, ... 4 in all and cat, dog\)"):
            call(TRAIN, other)
        with pytest.raises(ValueError, match="all 5 labelled pictures of drawn:0 are of one class"):
            call(uniform, TEST)


@pytest.mark.parametrize(
    ("names", "values", "sentence"),
    [
        ("knnn", {}, "there is no protocol 'knnn': did you mean 'knn'"),
        ("knn,xyz", {}, "there is no protocol 'xyz': there are knn, "),
        ("knn", {"xyz": 3}, "there is no setting 'xyz' of knn: there are "),
        ("knn,health", {"temprature": 1.0}, "no setting 'temprature' of knn or health: did you mean 'temperature'"),
        ("knn", {"fractions": (0.0,)}, "knn: fractions must be greater than 0, not 0.0"),
        ("knn", {"fractions": ()}, r"knn: fractions must have a value, not \(\)"),
        ("knn", {"k": ("many",)}, "knn: k must be a whole number, not 'many'"),
        ("health", {"first_rank": 9, "last_rank": 3}, r"health: first_rank \(9\) must be below last_rank \(3\)"),
    ],
)
def test_unknown_names_and_values_get_a_sentence(names: str, values: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_settings(find_protocols(names), values)
