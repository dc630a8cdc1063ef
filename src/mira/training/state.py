"""Everything that changes while training, on its way into a checkpoint and out of it."""

from dataclasses import dataclass, field

from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from mira.model import Mira
from mira.training.assignment_methods import AssignmentState
from mira.training.checkpoint import Checkpoint
from mira.training.recipe import Recipe
from mira.versions import versions


@dataclass
class TrainState:
    """Model, optimiser, what the labels remember, and a number. The place in the data is a function of `step`.

    Attributes:
        model: student, teacher, prototypes.
        optimiser: over the student and the prototypes.
        scaler: of the loss; it does nothing unless the precision is float16.
        label_state: what the way to labels carries from step to step.
        step: steps taken so far.
    """

    model: Mira
    optimiser: Optimizer
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))
    label_state: AssignmentState = field(default_factory=dict)
    step: int = 0

    def checkpoint(self, recipe: Recipe, *, pictures: int, digest: str) -> Checkpoint:
        """The state as it is now; its tensors are the living ones."""
        return Checkpoint(
            step=self.step,
            recipe=recipe,
            model=self.model.state_dict(),
            optimiser=self.optimiser.state_dict(),
            scaler=self.scaler.state_dict(),
            label_state=self.label_state,
            pictures=pictures,
            digest=digest,
            versions=versions(),
        )

    def load(self, checkpoint: Checkpoint) -> None:
        """Take over the state of a checkpoint."""
        self.model.load_state_dict(checkpoint.model)
        self.optimiser.load_state_dict(checkpoint.optimiser)
        if checkpoint.scaler:
            self.scaler.load_state_dict(checkpoint.scaler)
        self.label_state = {
            name: checkpoint.label_state[name].to(value.device) for name, value in self.label_state.items()
        }
        self.step = checkpoint.step
