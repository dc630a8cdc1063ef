"""Who a process is, as torchrun, SLURM's srun or `mira pretrain --processes` have written into its environment."""

import os
from collections.abc import Mapping

from mira.distributed.ranks import ALONE, Ranks
from mira.rank import rank_from_environment, started_by


def ranks_from_environment(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Who this process is: torchrun's variables, else those of a SLURM step, else alone.

    Raises:
        ValueError: SLURM has started several processes, and nothing says where they meet.
    """
    starter, rank = started_by(environment), rank_from_environment(environment)
    if starter == "torchrun":
        return Ranks(
            rank=rank,
            world=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", 0)),
            local_world=int(environment.get("LOCAL_WORLD_SIZE", 1)),
        )
    if starter == "srun":
        if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
            raise ValueError(
                "srun has started several processes but MASTER_ADDR and MASTER_PORT do not say where they meet: start "
                "from scripts/slurm.sbatch, or write `export MASTER_ADDR=$(scontrol show hostnames | head -n 1) "
                "MASTER_PORT=29500` before srun"
            )
        return Ranks(
            rank=rank,
            world=int(environment["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            # "4(x2),3": tasks on each node of the step
            local_world=int(environment.get("SLURM_STEP_TASKS_PER_NODE", "1").partition("(")[0].partition(",")[0]),
        )
    return ALONE


def started_again(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or SLURM has started this command before, so that it has to go on where it was."""
    return any(int(environment.get(key, 0)) > 0 for key in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
