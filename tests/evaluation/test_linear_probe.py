from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_source import DrawnSource
from torch import nn
from torch.nn.functional import cross_entropy

from mira.evaluation import linear
from mira.evaluation.augmented import Mirrored, RandomCrops, epoch_order
from mira.evaluation.heads import Heads, best, cosine
from mira.evaluation.linear import LinearSettings, evaluate_linear
from mira.evaluation.linear_fast import LinearFastSettings, evaluate_linear_fast, train_heads
from mira.evaluation.saved_state import SavedState
from mira.evaluation.subject import Compute, Subject
from mira.model.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=16, resize=18, channels=1, mean=(0.5,), std=(0.25,))
QUICK = LinearSettings(epochs=4, batch_size=50, learning_rates=(0.3,), smallest_crop=0.7, flip=0.0)


def subject(seed: int = 0) -> Subject:
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten())
    return Subject("small", backbone.train(), PREPROCESSING)


class TestHeads:
    rates, decays = (0.5, 0.01, 2.0), (0.0, 0.1, 1e-3)

    def steps(self, count: int, classes: int = 3, width: int = 5):
        generator = torch.Generator().manual_seed(0)
        for _ in range(count):
            yield torch.randn(20, width, generator=generator), torch.randint(classes, (20,), generator=generator)

    def test_each_is_what_torch_makes_of_it_alone(self) -> None:
        heads = Heads.start(3, 3, 5, seed=0, device=torch.device("cpu"))
        alone = []
        for rate, decay in zip(self.rates, self.decays, strict=True):
            layer = nn.Linear(5, 3)
            with torch.no_grad():
                layer.weight.copy_(heads.weight[0])
                layer.bias.zero_()
            alone.append((layer, torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9, weight_decay=decay)))
        for features, labels in self.steps(12):
            heads.step(
                features,
                labels,
                learning_rates=torch.tensor(self.rates),
                weight_decays=torch.tensor(self.decays),
                momentum=0.9,
            )
            for layer, optimiser in alone:
                optimiser.zero_grad()
                cross_entropy(layer(features), labels).backward()
                optimiser.step()
        for number, (layer, _) in enumerate(alone):
            torch.testing.assert_close(heads.weight[number], layer.weight.detach(), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(heads.bias[number], layer.bias.detach(), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(heads.logits(features)[number].T, layer(features).detach(), atol=1e-4, rtol=1e-4)

    def test_the_start_is_normal_with_deviation_a_hundredth_and_bias_zero(self) -> None:
        heads = Heads.start(2, 100, 500, seed=1, device=torch.device("cpu"))
        assert float(heads.weight.std()) == pytest.approx(0.01, rel=0.02)
        assert torch.equal(heads.weight[0], heads.weight[1])
        assert not heads.bias.any()

    def test_the_rate_falls_along_a_cosine_from_epoch_to_epoch(self) -> None:
        layer = nn.Linear(1, 1)
        optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 7)
        for epoch in range(7):
            assert cosine(epoch, 7) == pytest.approx(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()

    def test_a_diverged_classifier_has_no_accuracy_and_is_not_chosen(self) -> None:
        heads = Heads.start(2, 3, 3, seed=0, device=torch.device("cpu"))
        heads.weight[0] = torch.inf
        heads.weight[1] = torch.eye(3)
        assert heads.accuracies(torch.eye(3), torch.tensor([0, 1, 0])) == [None, pytest.approx(200 / 3)]
        assert best([None, 50.0, 60.0, 60.0]) == 2
        with pytest.raises(ValueError, match="choose lower learning rates"):
            best([None, None])


class TestAugmented:
    source = DrawnSource(40, channels=3, side=24)

    def crops(self, epoch: int, chosen=range(40), scale=(0.08, 1.0), flip=0.5) -> RandomCrops:
        return RandomCrops(self.source, np.array(chosen), size=16, scale=scale, flip=flip, seed=3, epoch=epoch)

    def test_a_function_of_seed_epoch_and_picture_whatever_the_order(self) -> None:
        forth, back = self.crops(2), self.crops(2, chosen=range(39, -1, -1))
        other = self.crops(3)
        for index in range(40):
            assert np.array_equal(forth.read(index), back.read(39 - index))
            assert forth.key(index) == back.key(39 - index) == self.source.key(index)
        assert sum(np.array_equal(forth.read(index), other.read(index)) for index in range(40)) < 3
        assert np.array_equal(back.labels, self.source.labels[::-1])

    def test_whole_pictures_come_back_flipped_or_not(self) -> None:
        source = DrawnSource(30, channels=1, side=16)
        crops = RandomCrops(source, np.arange(30), size=16, scale=(1.0, 1.0), flip=0.5, seed=0, epoch=0)
        mirrored = Mirrored(source)
        flipped = same = 0
        for index in range(30):
            crop, picture = crops.read(index), source.read(index)
            same += np.array_equal(crop, picture)
            flipped += np.array_equal(crop, mirrored.read(index))
        # A box of another ratio than the square's is also drawn; it never fits a square picture of its own area.
        assert same + flipped >= 15
        assert min(same, flipped) >= 4

    def test_an_epoch_shows_every_picture_once(self) -> None:
        first, second = (epoch_order(103, seed=0, epoch=epoch) for epoch in range(2))
        assert sorted(first) == sorted(second) == list(range(103))
        assert not np.array_equal(first, second)


class TestEvaluateLinear:
    train, test = DrawnSource(300, side=20), DrawnSource(160, seed=1, side=20)

    def run(self, settings=QUICK, seed: int = 0, folder: Path | None = None, **compute):
        return evaluate_linear(
            subject(), self.train, self.test, settings, seed=seed, compute=Compute(**compute), folder=folder
        )

    def test_learns_and_leaves_the_backbone_bit_for_bit(self) -> None:
        probed = subject()
        before = {name: value.clone() for name, value in probed.backbone.state_dict().items()}
        [score] = evaluate_linear(probed, self.train, self.test, QUICK, seed=0, compute=Compute())
        assert score.value > 70
        assert (score.metric, score.train_size, score.test_size, score.note) == ("top-1", 300, 160, "")
        assert score.chosen["learning_rate"] == 0.3
        assert all(torch.equal(value, before[name]) for name, value in probed.backbone.state_dict().items())
        assert probed.backbone.training
        assert all(parameter.grad is None for parameter in probed.backbone.parameters())

    def test_the_backbone_is_in_evaluation_mode_meanwhile(self) -> None:
        probed = subject()
        modes = []
        probed.backbone[1].register_forward_hook(lambda module, *_: modes.append(module.training))
        evaluate_linear(probed, self.train, self.test, QUICK, seed=0, compute=Compute())
        assert len(modes) >= 4
        assert not any(modes)

    def heads(self, settings=QUICK, seed: int = 0, folder: Path | None = None, **compute) -> Heads:
        state = SavedState(folder, "linear", settings, subject(), self.train, seed)
        return linear.train_heads(
            subject(), self.train, settings, classes=4, seed=seed, compute=Compute(**compute), state=state
        )

    def test_workers_and_batches_of_the_pass_change_nothing_and_the_seed_does(self, monkeypatch) -> None:
        one = self.heads()
        assert torch.equal(self.heads(workers=2).weight, one.weight)
        torch.testing.assert_close(self.heads(batch_size=37).weight, one.weight)
        assert not torch.equal(self.heads(seed=1).weight, one.weight)
        monkeypatch.setattr(linear, "_AHEAD", 1)
        torch.testing.assert_close(self.heads().weight, one.weight)

    @pytest.mark.parametrize("epochs_before", [1, 3])
    def test_a_stopped_training_goes_on_to_the_same_bits(self, tmp_path: Path, epochs_before: int) -> None:
        def stop(what: str, done: int, total: int) -> None:
            if "epochs" in what and done == epochs_before:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.heads(folder=tmp_path, progress=stop)
        assert len(list(tmp_path.iterdir())) == 1
        epochs = []
        resumed = self.heads(folder=tmp_path, progress=lambda what, done, total: epochs.append(done))
        assert epochs == list(range(epochs_before, QUICK.epochs + 1))
        whole = self.heads()
        assert torch.equal(resumed.weight, whole.weight)
        assert torch.equal(resumed.bias, whole.bias)

    def test_a_damaged_state_is_told(self, tmp_path: Path) -> None:
        self.heads(folder=tmp_path)
        [path] = tmp_path.iterdir()
        path.write_bytes(path.read_bytes()[:100])
        with pytest.warns(UserWarning, match="is damaged .* Starting this evaluation anew"):
            again = self.heads(folder=tmp_path)
        assert torch.equal(again.weight, self.heads().weight)

    def test_what_is_trained_but_not_yet_kept_is_only_measured_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scores = self.run(folder=tmp_path)
        monkeypatch.setattr(linear, "_epoch", None)
        assert self.run(folder=tmp_path) == scores

    def test_a_state_of_other_settings_is_not_taken(self, tmp_path: Path) -> None:
        def stop(what: str, done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.heads(folder=tmp_path, progress=stop)
        other = QUICK.model_copy(update={"momentum": 0.5})
        assert torch.equal(self.heads(other, folder=tmp_path).weight, self.heads(other).weight)

    def test_several_rates_learn_as_each_alone_and_validation_chooses(self) -> None:
        rates = (1e-5, 0.3, 0.05)
        scores = self.run(QUICK.model_copy(update={"learning_rates": rates}))
        validation = {score.chosen["learning_rate"]: score.chosen["validation_value"] for score in scores}
        assert set(validation) == set(rates)
        assert [score.metric for score in scores] == ["top-1", *(f"top-1, learning rate {rate:g}" for rate in rates)]
        assert scores[0].chosen["validation_value"] == max(validation.values())
        assert scores[0].value in [score.value for score in scores[1:]]
        assert all(score.train_size < 300 for score in scores)
        side_by_side, alone = (
            self.heads(QUICK.model_copy(update={"learning_rates": chosen})) for chosen in (rates, rates[1:2])
        )
        torch.testing.assert_close(side_by_side.weight[1], alone.weight[0])

    def test_the_test_pictures_choose_nothing(self) -> None:
        wrong = DrawnSource(160, seed=1, side=20)
        wrong.labels = (wrong.labels + 1) % 4  # the better a classifier, the worse its score here
        settings = QUICK.model_copy(update={"learning_rates": (1e-5, 0.3)})
        chosen, other, again = evaluate_linear(subject(), self.train, wrong, settings, seed=0, compute=Compute())
        assert chosen.value == again.value
        assert chosen.chosen["learning_rate"] == 0.3
        assert chosen.chosen["validation_value"] > other.chosen["validation_value"]
        assert chosen.value < other.value

    def test_the_backbone_sees_the_crops_themselves(self) -> None:
        probed, seen = subject(), []
        probed.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        settings = QUICK.model_copy(update={"epochs": 1})
        state = SavedState(None, "linear", settings, probed, self.train, 0)
        linear.train_heads(probed, self.train, settings, classes=4, seed=0, compute=Compute(), state=state)
        order = epoch_order(300, seed=0, epoch=0)
        crops = RandomCrops(self.train, order, size=16, scale=(0.7, 1.0), flip=0.0, seed=0, epoch=0)
        expected = np.stack([crops.read(index) for index in range(300)]).transpose(0, 3, 1, 2)
        torch.testing.assert_close(torch.cat(seen), (torch.from_numpy(expected) / 255 - 0.5) / 0.25)

    def test_fewer_pictures_than_a_batch(self) -> None:
        [score] = self.run(LinearSettings(epochs=2))
        assert score.settings["batch_size"] == 300
        assert score.note == "batch 300: there are no more training pictures"

    def test_pictures_that_cannot_be_read_are_left_out_and_counted(self) -> None:
        broken = DrawnSource(100, side=20, broken=(3, 50))
        compute = Compute()
        [score] = evaluate_linear(subject(), broken, self.test, QUICK, seed=0, compute=compute)
        assert score.value is not None
        assert {key for _, key in compute.unreadable} == {"bars/3.png", "bars/50.png"}

    def test_divergence_gets_a_sentence(self) -> None:
        with pytest.raises(ValueError, match="choose lower learning rates"):
            self.run(QUICK.model_copy(update={"learning_rates": (1e38,)}))

    def test_mistakes_get_a_sentence(self) -> None:
        unlabelled, one_class = DrawnSource(20), DrawnSource(20)
        unlabelled.labels = None
        one_class.labels[:] = 1
        for train, sentence in [
            (unlabelled, "the linear probe needs labels"),
            (one_class, "are of one class"),
            (DrawnSource(0), "has no pictures to evaluate"),
            (DrawnSource(8, broken=tuple(range(8))), "none of the 8 pictures"),
        ]:
            for evaluate, settings in ((evaluate_linear, QUICK), (evaluate_linear_fast, LinearFastSettings())):
                with pytest.raises(ValueError, match=sentence):
                    evaluate(subject(), train, self.test, settings, seed=0, compute=Compute())
        with pytest.raises(ValueError, match="greater than 0"):
            LinearSettings(learning_rates=(0.0,))
        with pytest.raises(ValueError, match="at least 1"):
            LinearSettings(learning_rates=())


class TestFastMode:
    train, test = DrawnSource(300), DrawnSource(160, seed=1)
    settings = LinearFastSettings(epochs=8, batch_size=64, learning_rates=(1e-6, 0.3, 1e38))

    def run(self, settings=settings, **compute):
        return evaluate_linear_fast(subject(), self.train, self.test, settings, seed=0, compute=Compute(**compute))

    def test_says_what_it_is_and_what_it_chose(self) -> None:
        [score] = self.run()
        assert score.value > 70
        assert score.note == score.settings["mode"] == "linear, on cached features"
        assert score.chosen["learning_rate"] == 0.3
        assert score.settings["refit"] is True
        assert score.train_size == 300

    def test_refitting_is_training_on_everything(self) -> None:
        [score] = self.run(self.settings.model_copy(update={"refit": False}))
        assert score.train_size == 270
        assert score.value > 60

    def test_a_grid_learns_as_each_of_its_settings_alone(self) -> None:
        generator = torch.Generator().manual_seed(0)
        features, labels = torch.randn(90, 6, generator=generator), torch.randint(3, (90,), generator=generator)
        common = {"classes": 3, "epochs": 5, "batch_size": 20, "momentum": 0.9, "seed": 0}
        grid = [(0.1, 0.0), (1.0, 1e-2), (0.5, 0.0)]
        together = train_heads([features], labels, grid, **common)
        for number, values in enumerate(grid):
            alone = train_heads([features], labels, [values], **common)
            torch.testing.assert_close(alone.weight[0], together.weight[number])
        # Showing a picture or a copy of it is showing the picture.
        twice = train_heads([features, features.clone()], labels, grid, **common)
        torch.testing.assert_close(twice.weight, together.weight)

    def test_mirror_images_take_part(self) -> None:
        seen = []
        [score] = self.run(
            self.settings.model_copy(update={"mirror": True}), progress=lambda what, done, total: seen.append(what)
        )
        assert "small, mirrored training pictures" in seen
        assert score.settings["mirror"] is True

    def test_every_version_of_a_picture_is_learned_from(self) -> None:
        features, labels = torch.eye(4), torch.tensor([0, 1, 0, 1])
        common = {"classes": 2, "epochs": 30, "batch_size": 4, "momentum": 0.0, "seed": 0}
        with_copy = train_heads(
            [torch.cat([features, 0 * features], 1), torch.cat([0 * features, features], 1)],
            labels,
            [(100.0, 0.0)],
            **common,
        )
        learned = with_copy.weight[0, 0].sign() * torch.tensor([1, -1] * 4)
        assert (learned > 0).all()  # one feature for each picture and version

    def test_is_the_slow_mode_without_its_cuts(self) -> None:
        """Where a crop is the whole picture, both protocols train the same classifier."""
        whole = replace(subject(), preprocessing=replace(PREPROCESSING, resize=16))
        slow = LinearSettings(epochs=3, batch_size=50, learning_rates=(0.3,), flip=0.0)
        train = DrawnSource(300)

        class Uncut(RandomCrops):
            def read(self, index: int) -> np.ndarray:
                return self._source.read(int(self._chosen[index]))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linear, "RandomCrops", Uncut)
            state = SavedState(None, "linear", slow, whole, train, 0)
            one = linear.train_heads(whole, train, slow, classes=4, seed=0, compute=Compute(), state=state)
        found = Compute().features(whole, train, "training pictures")
        other = train_heads(
            [found.features], found.labels, [(0.3, 0.0)], classes=4, epochs=3, batch_size=50, momentum=0.9, seed=0
        )
        torch.testing.assert_close(one.weight, other.weight)
