"""What `make test-gpu` runs. In a hook, so that where there is no device one line says so for all tests."""

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
