import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Many small problems: threads would only get into each other's way, and into those of a parallel test run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
