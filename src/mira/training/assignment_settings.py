"""The recipe's `assignment`: one class of settings for each way to labels, chosen by `name`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from mira.settings import Settings

Temperature = Annotated[float, Field(gt=0.0)]
_Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class MiraSettings(Settings):
    """Mutual-information-regularised assignment (`mira.assign`).

    Attributes:
        beta: weight of the mutual information, first and last value of a cosine over the run; each in [0, 1).
        teacher_temperature: tau_t, divides the teacher's cosine similarities.
        student_temperature: tau_s, divides the student's.
        max_iterations: iterations of the solver in every step.
        tolerance: stop earlier once the optimality gap (nats) is below it. None makes no check, so that a GPU
            is never waited for.
        accelerate: Anderson acceleration; false is the published iteration.
    """

    title: ClassVar[str] = "MIRA"  # of features learned so, in tables; of the other methods likewise
    name: Literal["mira"] = "mira"
    beta: tuple[_Beta, _Beta] = (0.75, 2 / 3)
    teacher_temperature: Temperature = 0.225
    student_temperature: Temperature = 0.1
    max_iterations: int = Field(10, ge=1)
    tolerance: float | None = Field(None, gt=0.0)
    accelerate: bool = True


class SinkhornSettings(Settings):
    """Equal shares by Sinkhorn-Knopp (`mira.assignment.sinkhorn`); the defaults are SwAV's.

    Attributes:
        teacher_temperature: SwAV's epsilon, divides the teacher's cosine similarities.
        student_temperature: divides the student's.
        max_iterations: iterations in every step.
        tolerance: stop earlier once the distance of the shares from equal ones (nats) is below it.
    """

    title: ClassVar[str] = "Sinkhorn"
    name: Literal["sinkhorn"] = "sinkhorn"
    teacher_temperature: Temperature = 0.05
    student_temperature: Temperature = 0.1
    max_iterations: int = Field(3, ge=1)
    tolerance: float | None = Field(None, gt=0.0)


class CentringSettings(Settings):
    """Centring and sharpening (`mira.assignment.centre_and_sharpen`); the defaults are DINO's.

    Attributes:
        teacher_temperature: divides the teacher's centred cosine similarities once warmed up.
        warmup_temperature: in its place at the start.
        warmup_epochs: over which the one goes over into the other, on a straight line.
        student_temperature: divides the student's.
        momentum: of the running centre.
    """

    title: ClassVar[str] = "centering"
    name: Literal["centring"] = "centring"
    teacher_temperature: Temperature = 0.07
    warmup_temperature: Temperature = 0.04
    warmup_epochs: float = Field(30, ge=0.0)
    student_temperature: Temperature = 0.1
    momentum: float = Field(0.9, ge=0.0, lt=1.0)


class SoftmaxSettings(Settings):
    """The teacher's own predictions: MIRA without its mutual information, at MIRA's temperatures.

    Attributes:
        teacher_temperature: divides the teacher's cosine similarities.
        student_temperature: divides the student's.
    """

    title: ClassVar[str] = "softmax"
    name: Literal["softmax"] = "softmax"
    teacher_temperature: Temperature = 0.225
    student_temperature: Temperature = 0.1


METHODS = (MiraSettings, SinkhornSettings, CentringSettings, SoftmaxSettings)


def _method(settings: Any) -> str | None:
    """Which class settings are of; recipes from before there was a choice have no name."""
    name = settings.get("name", "mira") if isinstance(settings, Mapping) else getattr(settings, "name", None)
    return name if name is None else str(name)


AssignmentSettings = Annotated[
    Annotated[MiraSettings, Tag("mira")]
    | Annotated[SinkhornSettings, Tag("sinkhorn")]
    | Annotated[CentringSettings, Tag("centring")]
    | Annotated[SoftmaxSettings, Tag("softmax")],
    Discriminator(_method),
]
