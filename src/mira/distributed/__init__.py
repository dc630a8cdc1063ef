"""Many processes: the only folder that calls torch.distributed.

A process learns who it is from the environment that torchrun, SLURM's srun or `mira pretrain --processes` give it. The
answer is a small value, `Ranks`, that is handed to whatever needs it; nothing is global. One process alone needs no
process group: every method of its `Ranks` returns at once.
"""

from mira.distributed.environment import ranks_from_environment, started_again
from mira.distributed.launch import end_with_launcher
from mira.distributed.lost import TIMEOUT
from mira.distributed.meeting import in_group, process_group
from mira.distributed.ranks import ALONE, Ranks

__all__ = [
    "ALONE",
    "TIMEOUT",
    "Ranks",
    "end_with_launcher",
    "in_group",
    "process_group",
    "ranks_from_environment",
    "started_again",
]
