"""The line of an epoch."""

import math

import pytest

from mira.training.progress import TrainingProgress

METRICS = {
    "step": 10,
    "loss": 3.5,
    "label_mi": 0.9,
    "label_mi_max": math.log(16),
    "marginal_entropy": math.log(32) / 2,
    "pictures_per_second": 210.4,
    "data_wait": 0.03,
}


def test_the_line_uses_the_words_of_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TrainingProgress(total=40, first=0, steps_per_epoch=10, prototypes=32)
    progress.show(METRICS, end_of_epoch=True)
    printed = capsys.readouterr().err
    words = ("epoch 1.0/4", "label information 0.90/2.77", "evenness 50%", "210 images/s", "wait 3%")
    assert all(word in printed for word in words), printed
    assert "MI " not in printed
