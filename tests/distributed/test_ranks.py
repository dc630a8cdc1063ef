"""Who a process is, and what it does alone or with others."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from processes import on_ranks

from mira.distributed import ALONE, Ranks, ranks_from_environment, started_again
from mira.distributed import ranks as module
from mira.errors import FirstRankFailed, RankLost
from mira.training.checkpoint import newest_checkpoint

SLURM = {
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
}


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, ALONE),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Ranks(5, 8, 1, 4)),
        ({**SLURM, "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}, Ranks(5, 7, 1, 4)),
        # An interactive allocation for four tasks, and no srun: one process.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, ALONE),
    ],
)
def test_who_a_process_is_stands_in_its_environment(environment: dict[str, str], ranks: Ranks) -> None:
    assert ranks_from_environment(environment) == ranks


def test_slurm_without_a_meeting_point_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"MASTER_ADDR and MASTER_PORT do not say .* start from scripts/slurm\.sbatch"):
        ranks_from_environment(SLURM)


def test_a_restart_is_recognised() -> None:
    assert not started_again({})
    assert not started_again({"TORCHELASTIC_RESTART_COUNT": "0"})
    assert started_again({"TORCHELASTIC_RESTART_COUNT": "1"})
    assert started_again({"SLURM_RESTART_COUNT": "2"})


def test_one_process_does_everything_itself() -> None:
    x = torch.ones(3)
    assert ALONE.sum(x) is x
    assert ALONE.from_first(lambda: 7) == 7
    assert ALONE.gather("a") == ["a"]
    ALONE.share([x])
    ALONE.barrier()
    assert ALONE.device("cpu") == torch.device("cpu")
    assert not torch.distributed.is_initialized()


def sums(ranks: Ranks) -> tuple[list[torch.Tensor], list[int], bool]:
    module._BUCKET = 10  # several buckets, and a gradient larger than one
    shapes = [(3,), (2, 2), (4, 5), (1,), (8, 1, 3, 3), ()]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for i, parameter in enumerate(parameters):
        if i != 1:
            values = torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape)
            parameter.grad = values * (ranks.rank + 1)
    parameters[4].grad = parameters[4].grad.contiguous(memory_format=torch.channels_last)
    ranks.sum_gradients(parameters)
    shared = torch.full((2,), float(ranks.rank))
    ranks.share([shared])
    assert parameters[1].grad is None
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return gradients, ranks.gather(ranks.rank * 2), bool((shared == 0).all())


def test_gradients_are_summed_whatever_their_shape_and_layout() -> None:
    for gradients, gathered, shared in on_ranks(3, sums):
        for gradient in gradients:
            expected = torch.arange(gradient.numel(), dtype=torch.float32).reshape(gradient.shape) * 6
            assert torch.equal(gradient, expected)
        assert gathered == [0, 2, 4]
        assert shared


class Odd(Exception):
    """An error that cannot be pickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_on_first(ranks: Ranks) -> str:
    def work() -> None:
        assert ranks.first
        raise Odd(1, 2)

    try:
        ranks.from_first(work)
    except (Odd, FirstRankFailed) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_an_error_of_rank_0_reaches_all() -> None:
    assert on_ranks(2, fail_on_first) == ["Odd: 1 and 2", "FirstRankFailed: rank 0 failed with Odd: 1 and 2"]


def lose_a_rank(ranks: Ranks) -> float:
    if ranks.rank == 1:
        os._exit(1)
    began = time.monotonic()
    with pytest.raises(RankLost, match="another process has ended"):
        ranks.barrier()
    return time.monotonic() - began


def test_a_rank_that_ends_is_noticed_at_once() -> None:
    waited, nothing = on_ranks(2, lose_a_rank)
    assert nothing is None
    assert waited < 30


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.mark.slow
def test_torchrun_passes_sigterm_on_and_the_run_is_saved(
    picture_folder: Path, tiny_recipe: dict, tmp_path: Path
) -> None:
    tiny_recipe["training"]["epochs"] = 1000
    tiny_recipe["monitor"]["checkpoint_every"] = 1000
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    command = [*TORCHRUN, "-m", "mira.cli", "pretrain", str(picture_folder), "--recipe", str(recipe)]
    torchrun = subprocess.Popen([*command, "--out", str(run), "--quiet"], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 90
        while not (run / "metrics.jsonl").is_file() or "\n" not in (run / "metrics.jsonl").read_text():
            assert torchrun.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        torchrun.terminate()
        _, said = torchrun.communicate(timeout=60)
    finally:
        torchrun.kill()
        torchrun.wait()
    assert torchrun.returncode == 1  # torchrun's own for every ending that is no success
    assert said.count("continue with: mira pretrain --resume") == 1
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == len((run / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_torchrun_starts_a_run_and_after_a_death_goes_on_by_itself(
    picture_folder: Path, tiny_recipe: dict, tmp_path: Path
) -> None:
    tiny_recipe["monitor"]["checkpoint_every"] = 0.25
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    # Rank 1 dies once, in its first life after the fifth step, as a machine does: without a word.
    (tmp_path / "mortal.py").write_text(
        "import os, sys\n"
        "from mira.training import loop\n"
        "from mira.cli import main\n"
        "real = loop.train_step\n"
        "def mortal(model, optimiser, views, values, recipe, **others):\n"
        "    mortal.steps += 1\n"
        "    if os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and mortal.steps == 6:\n"
        "        os._exit(1)\n"
        "    return real(model, optimiser, views, values, recipe, **others)\n"
        "mortal.steps = 0\n"
        "loop.train_step = mortal\n"
        "code = main(sys.argv[1:])\n"
        "print('steps', os.environ['RANK'], mortal.steps)\n"
        "sys.exit(code)\n"
    )
    command = [*TORCHRUN, "--max-restarts=1"]
    command += [str(tmp_path / "mortal.py"), "pretrain", str(picture_folder), "--recipe", str(recipe)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    torchrun = subprocess.Popen([*command, "--out", str(run), "--quiet"], **pipes)
    try:
        out, errors = torchrun.communicate(timeout=300)
    finally:
        torchrun.terminate()  # it ends its processes, which are no longer in its session
        torchrun.wait()
    assert torchrun.returncode == 0, errors
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [yaml.safe_load(line)["step"] for line in lines] == list(range(1, 13))
    assert "steps 0 7" in out  # 12 steps in all, 5 of them in the first life
