from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_source import DrawnSource
from torch import nn

from mira.data import PictureSubset
from mira.evaluation.protocols import find_protocols, read_settings
from mira.evaluation.saved_state import SavedState
from mira.evaluation.semi_supervised import SemiSupervisedSettings, evaluate_semi_supervised, fine_tune
from mira.evaluation.splits import hold_out, listed_subset
from mira.evaluation.subject import Compute, Subject
from mira.evaluation.subsets import labelled_subset
from mira.model.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=16, resize=18, channels=1, mean=(0.5,), std=(0.25,))
QUICK = SemiSupervisedSettings(
    fractions=(0.5,),
    learning_rates=(0.05,),
    head_learning_rates=(0.2,),
    epochs=4,
    decay_epochs=(3,),
    batch_size=25,
    smallest_crop=0.7,
    flip=0.0,
)


def subject(dropout: float = 0.0) -> Subject:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(1, 8, 5),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
    )
    return Subject("small", backbone.eval().requires_grad_(False), PREPROCESSING)


TRAIN, TEST = DrawnSource(200, side=20), DrawnSource(160, seed=1, side=20)


def run(settings=QUICK, one: Subject | None = None, train=TRAIN, seed: int = 0, folder: Path | None = None, **compute):
    return evaluate_semi_supervised(
        one or subject(), train, TEST, settings, seed=seed, compute=Compute(**compute), folder=folder
    )


def tuned(settings=QUICK, one: Subject | None = None, folder: Path | None = None, seed: int = 0, **compute):
    one = one or subject()
    state = SavedState(folder, "semi-supervised", settings, one, TRAIN, seed)
    rates = settings.learning_rates[0], settings.head_learning_rates[0]
    return fine_tune(one, TRAIN, settings, rates, classes=4, seed=seed, compute=Compute(**compute), state=state)


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_learns_and_leaves_the_given_backbone_bit_for_bit() -> None:
    one = subject()
    before = {name: value.clone() for name, value in one.backbone.state_dict().items()}
    top1, top5 = run(one=one)
    assert top1.value > 60
    assert (top1.metric, top1.train_size, top1.test_size) == ("top-1", 101, 160)
    assert (top1.settings["fraction"], top1.train_size) == (0.5, 101)  # a half of each class, rounded
    assert (top5.value, top5.note) == (None, "no top-5: there are only 4 classes")
    assert all(torch.equal(value, before[name]) for name, value in one.backbone.state_dict().items())
    assert not one.backbone.training
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in one.backbone.parameters())


def test_the_whole_network_learns_and_batchnorm_sees_the_pictures() -> None:
    model, given = tuned(), subject().backbone
    assert not model.training
    changed = {
        name for name, value in model[0].state_dict().items() if not torch.equal(value, given.state_dict()[name])
    }
    assert changed == set(given.state_dict())


def test_the_same_steps_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates, their fall and momentum, against an optimiser and a scheduler of PyTorch."""
    batches = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if module.training:
            batches.append(inputs[0].clone())

    one = subject()
    one.backbone.register_forward_pre_hook(keep)
    labels = []
    from mira.evaluation import semi_supervised

    actual = semi_supervised.cross_entropy
    monkeypatch.setattr(semi_supervised, "cross_entropy", lambda z, y: (labels.append(y), actual(z, y))[1])
    model = tuned(one=one)
    assert len(batches) == len(labels) == 4 * 8

    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Linear(32, 4)
    copy = nn.Sequential(subject().backbone.requires_grad_(True), head).train()
    parts = [{"params": copy[0].parameters(), "lr": 0.05}, {"params": copy[1].parameters(), "lr": 0.2}]
    optimiser = torch.optim.SGD(parts, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3], gamma=0.2)
    for step, (inputs, target) in enumerate(zip(batches, labels, strict=True)):
        optimiser.zero_grad()
        actual(copy(inputs), target).backward()
        optimiser.step()
        if step % 8 == 7:
            schedule.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, copy.state_dict()[name])


def test_workers_change_nothing_and_the_seed_does() -> None:
    assert same(tuned(), tuned(workers=2))
    assert not same(tuned(), tuned(seed=1))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path, dropout: float) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    state = torch.random.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        tuned(one=subject(dropout), folder=tmp_path, progress=stop)
    epochs = []
    resumed = tuned(one=subject(dropout), folder=tmp_path, progress=lambda what, done, total: epochs.append(done))
    assert epochs == [2, 3, 4]
    torch.random.set_rng_state(state)
    assert same(resumed, tuned(one=subject(dropout)))
    assert len(list(tmp_path.iterdir())) == 1


def test_the_random_state_of_the_process_is_left_alone() -> None:
    one = subject(0.3)
    before = torch.random.get_rng_state()
    tuned(one=one)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_mixed_precision_stays_close() -> None:
    exact, mixed = (run(precision=precision)[0].value for precision in ("float32", "bfloat16"))
    assert mixed == pytest.approx(exact, abs=8)


def test_both_published_fractions_by_default() -> None:
    settings = SemiSupervisedSettings()
    assert settings.fractions == (0.01, 0.1)
    assert settings.learning_rates == (0.02, 0.01)
    assert settings.head_learning_rates == (5.0, 0.2)
    scores = run(
        QUICK.model_copy(
            update={"fractions": (0.2, 0.6), "learning_rates": (0.05, 0.02), "head_learning_rates": (0.5, 0.1)}
        )
    )
    sizes = [len(labelled_subset(torch.as_tensor(TRAIN.labels), share, seed=0)) for share in (0.2, 0.6)]
    assert [score.train_size for score in scores] == [sizes[0]] * 2 + [sizes[1]] * 2
    assert [score.settings["head_learning_rate"] for score in scores] == [0.5, 0.5, 0.1, 0.1]


def test_fewer_labels_than_a_batch_and_more_than_five_classes() -> None:
    train, test = DrawnSource(60, side=20), DrawnSource(60, seed=1, side=20)
    for source in (train, test):
        source.labels = source.labels + 4 * (np.arange(60) % 2)
        source.classes = tuple("abcdefgh")
    top1, top5 = evaluate_semi_supervised(
        subject(), train, test, QUICK.model_copy(update={"batch_size": 256}), seed=0, compute=Compute()
    )
    assert top1.settings["batch_size"] == top1.train_size
    assert "there are no more labelled pictures" in top1.note
    assert top1.value < top5.value <= 100


def test_a_backbone_without_weights_trains_its_classifier() -> None:
    pixels = Subject("raw pixels", nn.Flatten(), PREPROCESSING)
    assert run(one=pixels)[0].value > 25


class TestListedPictures:
    def test_names_with_and_without_folders(self, tmp_path: Path) -> None:
        path = tmp_path / "half.txt"
        path.write_text("bars/7.png\n\n150.png\r\n3.png\n")
        assert listed_subset(TRAIN, path).tolist() == [3, 7, 150]

    def test_are_what_is_learned_from(self, tmp_path: Path) -> None:
        path = tmp_path / "some.txt"
        path.write_text("\n".join(f"{index}.png" for index in range(40, 100)))
        [top1, _] = run(QUICK.model_copy(update={"lists": (str(path),)}))
        assert top1.train_size == 60
        assert top1.settings["list"].startswith("some.txt (")
        assert top1.settings["fraction"] == pytest.approx(0.3)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("", "is empty: give one file name a line"),
            ("3.png\n999.png\nnone.png", "2 of the 3 names in .* are no pictures of drawn:0; the first is '999.png'"),
            ("3.png\n3.png", "'3.png' stands 2 times"),
        ],
    )
    def test_what_does_not_match_gets_a_sentence(self, tmp_path: Path, text: str, sentence: str) -> None:
        path = tmp_path / "list.txt"
        path.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            listed_subset(TRAIN, path)

    def test_a_name_of_several_pictures_and_a_missing_file(self, tmp_path: Path) -> None:
        path = tmp_path / "list.txt"
        path.write_text("3.png")
        with pytest.raises(ValueError, match="names 2 pictures .* write their folders before the names"):
            listed_subset(PictureSubset(TRAIN, np.array([3, 4, 3])), path)
        with pytest.raises(ValueError, match="cannot be read"):
            listed_subset(TRAIN, tmp_path / "nowhere.txt")


class TestHoldOut:
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 2 + [3])

    def test_a_share_of_every_class_and_all_keep_one(self) -> None:
        kept, held = hold_out(self.labels, 0.2, seed=0)
        assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(113))
        assert [self.labels[held].tolist().count(label) for label in range(4)] == [20, 2, 1, 0]
        assert torch.equal(held, hold_out(self.labels, 0.2, seed=0)[1])
        assert not torch.equal(held, hold_out(self.labels, 0.2, seed=1)[1])
        assert hold_out(self.labels, 0.999, seed=0)[0].tolist() != []

    def test_mistakes_get_a_sentence(self) -> None:
        with pytest.raises(ValueError, match="held-out share must be above 0"):
            hold_out(self.labels, 1.0, seed=0)
        with pytest.raises(ValueError, match="at least one class needs two pictures"):
            hold_out(torch.arange(5), 0.5, seed=0)


def test_mistakes_get_a_sentence(tmp_path: Path) -> None:
    unlabelled, one_class = DrawnSource(20), DrawnSource(20)
    unlabelled.labels = None
    one_class.labels[:] = 1
    path = tmp_path / "one.txt"
    path.write_text("3.png")
    hot = {"learning_rates": (1e30,), "head_learning_rates": (1e30,)}
    for change, train, sentence in [
        ({}, unlabelled, "semi-supervised fine-tuning needs labels"),
        ({}, one_class, "are of one class"),
        ({}, DrawnSource(0), "has no pictures to evaluate"),
        ({"lists": (str(path),)}, TRAIN, "all 1 labelled pictures .* are of one class"),
        (hot, TRAIN, "the loss is no longer finite in epoch 1"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            run(QUICK.model_copy(update=change), train=train)
    with pytest.raises(ValueError, match=r"learning_rates has 2 value\(s\) for 1 fraction"):
        SemiSupervisedSettings(fractions=(0.1,), learning_rates=(0.01, 0.02))


def test_a_published_fraction_brings_its_rates():
    settings = SemiSupervisedSettings(fractions=(0.1,))
    assert (settings.learning_rates, settings.head_learning_rates) == ((0.01,), (0.2,))
    assert SemiSupervisedSettings(fractions=(0.1, 0.01)).learning_rates == (0.01, 0.02)


@pytest.mark.parametrize("other", [{"fractions": (0.05,)}, {"fractions": (0.1, 1.0)}, {"lists": ("10.txt", "1.txt")}])
def test_what_no_rates_are_published_for_needs_some(other):
    with pytest.raises(ValueError, match="one of each for every list or fraction"):
        SemiSupervisedSettings(**other)
    with pytest.raises(ValueError, match="one of each for every list or fraction"):
        SemiSupervisedSettings(**other, learning_rates=(0.1,))
    rates = (0.1,) * len(next(iter(other.values())))
    assert SemiSupervisedSettings(**other, learning_rates=rates, head_learning_rates=rates).learning_rates == rates
    with pytest.raises(ValueError, match="give one for each"):
        SemiSupervisedSettings(**other, learning_rates=(0.1,) * 3, head_learning_rates=rates)


def test_a_fraction_that_is_no_number():
    [protocol] = find_protocols("semi-supervised")
    with pytest.raises(ValueError, match=r"semi-supervised: fractions must be a number.*, not '10%'"):
        read_settings([protocol], {"fractions": ["10%"]})
