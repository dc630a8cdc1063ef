"""Which of the processes that train together this one is; light to import, unlike `mira.distributed`."""

import os
from collections.abc import Mapping


def started_by(environment: Mapping[str, str] = os.environ) -> str | None:
    """What has started this process beside others: "torchrun" (or `mira pretrain --processes`), "srun", or None.

    Only srun sets SLURM_STEP_NUM_TASKS: in an interactive allocation one process is one process.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return "torchrun"
    return "srun" if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 else None


def rank_from_environment(environment: Mapping[str, str] = os.environ) -> int:
    """The rank of this process; 0 where it is alone."""
    name = {"torchrun": "RANK", "srun": "SLURM_PROCID"}.get(started_by(environment) or "")
    return int(environment[name]) if name else 0
