"""What several folders of tests share."""

import os
from pathlib import Path

# Tests run side by side, one process per core: each keeps to its own. Child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from tiny import TINY, write_pictures

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


# The same examples every time; `pytest --hypothesis-profile=explore` looks for new ones.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True, scope="session")
def own_feature_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Features are kept in a folder of this test run, never in the person's."""
    os.environ["MIRA_CACHE"] = str(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 readable pictures in two class folders."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), 64)


@pytest.fixture
def tiny_recipe() -> dict:
    """A fresh copy of TINY."""
    import copy

    return copy.deepcopy(TINY)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Path:
    """A run of TINY on the 64 pictures, with labels from folders."""
    import copy

    import mira

    recipe = copy.deepcopy(TINY)
    recipe["data"] = {"labels": "folder", "split": "all"}
    recipe["monitor"]["knn_every"] = 1
    return mira.pretrain(picture_folder, out=tmp_path_factory.mktemp("runs") / "tiny", recipe=recipe, quiet=True)
