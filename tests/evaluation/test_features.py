import copy

import numpy as np
import pytest
import torch
from drawn_source import DrawnSource
from torch import nn

from mira.evaluation.features import every, extract_features
from mira.evaluation.floors import PIXELS_SIDE, ShiftedSource, random_backbone, raw_pixels
from mira.evaluation.subject import Compute
from mira.model import BackboneSettings, Preprocessing, create_backbone

GREY = Preprocessing(size=16, resize=16, channels=1, mean=(0.4,), std=(0.2,))


def tiny_backbone() -> nn.Module:
    settings = BackboneSettings(name="resnet18", channels=1, options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]})
    return create_backbone(settings, crop_size=16)


class TestExtractFeatures:
    def test_leaves_the_backbone_bit_for_bit_and_every_mode_as_it_was(self) -> None:
        backbone = tiny_backbone().train()
        backbone.layer1.eval()  # a mixture of modes, as for a part that is frozen
        before = copy.deepcopy(backbone.state_dict())
        modes = [module.training for module in backbone.modules()]
        extract_features(backbone, DrawnSource(9), preprocessing=GREY, batch_size=4)
        assert [module.training for module in backbone.modules()] == modes
        assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in backbone.parameters())

    def test_modes_return_after_a_failure_too(self) -> None:
        class Failing(nn.BatchNorm2d):
            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                raise RuntimeError("out of memory")

        backbone = Failing(1).train()
        with pytest.raises(RuntimeError, match="out of memory"):
            extract_features(backbone, DrawnSource(2), preprocessing=GREY)
        assert backbone.training

    def test_equals_the_backbone_in_evaluation_mode_on_normalised_pictures(self) -> None:
        source, backbone = DrawnSource(10), tiny_backbone()
        found = extract_features(backbone, source, preprocessing=GREY, batch_size=3)
        pictures = np.stack([source.read(index) for index in range(10)]).transpose(0, 3, 1, 2)
        inputs = (torch.from_numpy(pictures).float() / 255 - 0.4) / 0.2
        with torch.no_grad():
            expected = backbone.eval()(inputs)
        torch.testing.assert_close(found.features, expected)
        assert found.labels is not None
        assert found.labels.tolist() == source.labels.tolist()
        assert found.keys == [source.key(index) for index in range(10)]

    def test_several_devices_give_what_one_gives(self) -> None:
        source, backbone = DrawnSource(23, broken=(5,)), tiny_backbone()
        one, several = (
            extract_features(backbone, source, preprocessing=GREY, device=device, batch_size=4)
            for device in ("cpu", ["cpu", torch.device("cpu"), "cpu"])
        )
        assert torch.equal(one.features, several.features)
        assert one.keys == several.keys
        assert every("cpu") == [torch.device("cpu")]
        assert every("cuda:1") == [torch.device("cuda", 1)]

    def test_workers_change_nothing(self) -> None:
        backbone = tiny_backbone()
        here, elsewhere = (
            extract_features(backbone, DrawnSource(12), preprocessing=GREY, batch_size=5, workers=workers)
            for workers in (0, 2)
        )
        assert torch.equal(here.features, elsewhere.features)

    def test_unreadable_pictures_have_no_row_and_are_named(self) -> None:
        source = DrawnSource(7, broken=(0, 4))
        found = extract_features(nn.Flatten(), source, preprocessing=GREY, batch_size=2)
        assert found.indices.tolist() == [1, 2, 3, 5, 6]
        assert found.keys == [f"bars/{index}.png" for index in (1, 2, 3, 5, 6)]
        assert found.unreadable == [("bars/0.png", "truncated"), ("bars/4.png", "truncated")]
        assert found.labels is not None
        assert found.labels.tolist() == source.labels[[1, 2, 3, 5, 6]].tolist()
        assert len(found.features) == 5

    def test_features_may_be_trained_on(self) -> None:
        found = extract_features(tiny_backbone(), DrawnSource(4), preprocessing=GREY)
        probe = nn.Linear(found.features.shape[1], 2)
        probe(found.features).sum().backward()  # fails on tensors made in inference mode
        assert probe.weight.grad is not None

    def test_half_precision_is_near_and_comes_back_as_float32(self) -> None:
        backbone = tiny_backbone()
        exact, half = (
            extract_features(backbone, DrawnSource(6), preprocessing=GREY, precision=precision)
            for precision in ("float32", "bfloat16")
        )
        assert half.features.dtype is torch.float32
        assert not torch.equal(half.features, exact.features)
        torch.testing.assert_close(half.features, exact.features, rtol=0.1, atol=0.05)

    def test_progress_ends_at_the_total(self) -> None:
        calls: list[tuple[int, int]] = []
        source = DrawnSource(5, broken=(1,))
        extract_features(
            nn.Flatten(), source, preprocessing=GREY, batch_size=2, progress=lambda *call: calls.append(call)
        )
        assert calls == [(2, 5), (4, 5), (5, 5)]

    def test_chosen_rows_keep_everything_together(self) -> None:
        found = extract_features(nn.Flatten(), DrawnSource(6), preprocessing=GREY)
        few = found.rows(torch.tensor([4, 1]))
        assert few.keys == ["bars/4.png", "bars/1.png"]
        assert torch.equal(few.features, found.features[[4, 1]])
        assert torch.equal(few.labels, found.labels[[4, 1]])
        assert few.indices.tolist() == [4, 1]

    def test_mistakes_get_a_sentence(self) -> None:
        with pytest.raises(ValueError, match="drawn:0 has no pictures to evaluate"):
            extract_features(nn.Flatten(), DrawnSource(0), preprocessing=GREY)
        with pytest.raises(ValueError, match=r"none of the 2 pictures .* the first: bars/0.png: truncated"):
            extract_features(nn.Flatten(), DrawnSource(2, broken=(0, 1)), preprocessing=GREY)
        with pytest.raises(ValueError, match=r"shape \[2, 1, 16, 16\], not pooled features"):
            extract_features(nn.Identity(), DrawnSource(2), preprocessing=GREY)
        with pytest.raises(ValueError, match=r"3 channel\(s\) and the backbone expects 1"):
            extract_features(nn.Flatten(), DrawnSource(2, channels=3), preprocessing=GREY)


class TestFloors:
    def test_raw_pixels_are_the_pictures_centred_by_the_training_mean(self) -> None:
        train, test = DrawnSource(20, seed=0), DrawnSource(5, seed=1)
        subject = raw_pixels(train, GREY, Compute())
        bank, queries = (Compute().features(subject, source, "") for source in (train, test))
        flat = lambda source: np.stack([source.read(i).ravel() for i in range(len(source))]) / 255  # noqa: E731
        mean = flat(train).mean(axis=0)
        np.testing.assert_allclose(bank.features.numpy(), flat(train) - mean, atol=1e-6)
        np.testing.assert_allclose(queries.features.numpy(), flat(test) - mean, atol=1e-6)

    def test_large_pictures_are_made_small(self) -> None:
        large = Preprocessing(size=112, resize=128, channels=1, mean=(0.5,), std=(0.2,))
        source = DrawnSource(3, side=150)
        subject = raw_pixels(source, large, Compute())
        assert subject.checkpoint == "32 x 32 x 1 numbers, centred"
        bank = Compute().features(subject, source, "")
        assert bank.features.shape == (3, PIXELS_SIDE**2)

    def test_random_backbone_is_decided_by_the_seed_and_leaves_the_process_alone(self) -> None:
        state = torch.get_rng_state()
        first, again, other = (random_backbone(tiny_backbone, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first.conv1.weight, again.conv1.weight)
        assert not torch.equal(first.conv1.weight, other.conv1.weight)
        assert not first.training


class TestShiftedSource:
    def test_every_picture_is_the_original_moved_with_its_edge_repeated(self) -> None:
        source = DrawnSource(40)
        moved = ShiftedSource(source, 2, seed=5)
        seen = set()
        for index in range(40):
            original, shifted = source.read(index), moved.read(index)
            padded = np.pad(original, ((2, 2), (2, 2), (0, 0)), mode="edge")
            places = [
                (y, x) for y in range(5) for x in range(5) if np.array_equal(padded[y : y + 16, x : x + 16], shifted)
            ]
            assert len(places) == 1
            seen.update(places)
        assert len(seen) > 15  # of 25 places
        assert {0, 4} <= {y for y, _ in seen}
        assert {0, 4} <= {x for _, x in seen}

    def test_a_function_of_seed_and_picture_alone(self) -> None:
        source = DrawnSource(10)
        forwards = [ShiftedSource(source, 3, seed=1).read(index) for index in range(10)]
        backwards = [ShiftedSource(source, 3, seed=1).read(index) for index in reversed(range(10))][::-1]
        other = [ShiftedSource(source, 3, seed=2).read(index) for index in range(10)]
        assert all(map(np.array_equal, forwards, backwards))
        assert not all(map(np.array_equal, forwards, other))

    def test_no_shift_changes_nothing_and_names_stay(self) -> None:
        source = DrawnSource(3)
        still = ShiftedSource(source, 0)
        np.testing.assert_array_equal(still.read(1), source.read(1))
        assert (still.name, still.key(2), len(still)) == (source.name, source.key(2), 3)

    def test_a_negative_shift_gets_a_sentence(self) -> None:
        with pytest.raises(ValueError, match="pixels must be 0 or more, not -1"):
            ShiftedSource(DrawnSource(1), -1)
