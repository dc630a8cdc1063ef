"""The recipe: everything that decides what a run computes, typed, validated and frozen."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mira.data import CropSettings
from mira.data.workers import PATIENCE
from mira.model import ModelSettings
from mira.model.preprocessing import LARGEST_SIDE
from mira.settings import PositiveInt, Settings
from mira.training.assignment_methods import AssignmentSettings, MiraSettings
from mira.training.boards import BoardName

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class DataSettings(Settings):
    """Which pictures.

    Attributes:
        source: a folder, tar or Parquet files ("train-{000..146}.tar"), "builtin:fashion", "torchvision:NAME" or
            "hf:NAME"; see `open_source`.
        split: "auto" trains on the train part where the source has one, else on everything.
        labels: "folder" takes the first folder level as the class. Labels never enter training; they serve the
            k-NN that is shown meanwhile.
        max_unreadable: largest share of unreadable pictures before the run stops.
        augment: where flip, colour, blur and solarise are done: by the "workers", or on the training "device", where
            workers only decode and cut. "auto" is the device if it is a GPU; on a CPU the workers are faster.
        decode: "exact" decodes whole pictures; "scaled" decodes large JPEGs only as large as the crops need them,
            which changes these by less than a grey level on average.
        cache: "disk" decodes all pictures once, into a file below `pictures` in $MIRA_CACHE (else in ~/.cache/mira).
        cache_size: short side that larger pictures have there, pixels. None keeps them whole, so nothing changes;
            a size saves room and time and changes the crops (docs/pipeline.md).
        cache_gigabytes: the most that a cache may take, and the most that copies of remote tar files may take.
        mix_shards: mix the pictures of so many tar files at a time instead of all pictures, so that remote files
            that do not all fit into `cache_gigabytes` are fetched one after the other, each once an epoch.
        worker_timeout: seconds without a batch after which loader processes are taken to hang and the run stops, saved.
        mean: per channel on the 0-1 scale; none for the usual statistics.
        std: likewise.
    """

    source: str = "builtin:fashion"
    split: Literal["auto", "train", "test", "all"] = "auto"
    labels: Literal["auto", "folder", "none"] = "auto"
    max_unreadable: Fraction = 0.05
    augment: Literal["auto", "workers", "device"] = "auto"
    decode: Literal["exact", "scaled"] = "exact"
    cache: Literal["none", "disk"] = "none"
    cache_size: PositiveInt | None = None
    cache_gigabytes: float = Field(50.0, gt=0.0, le=1e9)
    mix_shards: PositiveInt | None = None
    worker_timeout: float = Field(PATIENCE, gt=0.0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class TeacherSettings(Settings):
    """EMA momentum of the teacher: first and last value of a cosine over the run."""

    momentum: tuple[Fraction, Fraction] = (0.99, 1.0)


class OptimiserSettings(Settings):
    """The optimiser and its learning rate.

    Attributes:
        name: "lars", "sgd" or "adamw".
        learning_rate: peak, for a batch of 256; the peak used is learning_rate x batch_size / 256.
        warmup_epochs: epochs over which the rate rises.
        warmup_from: where it rises from, as a share of the peak.
        weight_decay: for tensors with more than one dimension.
        momentum: of LARS and SGD.
        eta: trust coefficient of LARS.
        betas: of AdamW.
    """

    name: Literal["lars", "sgd", "adamw"] = "lars"
    learning_rate: float = Field(0.3, gt=0.0)
    warmup_epochs: float = Field(10, ge=0.0, le=1e9)
    warmup_from: Fraction = 0.0625
    weight_decay: float = Field(1e-6, ge=0.0)
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    eta: float = Field(0.001, gt=0.0)
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.999)


class TrainingSettings(Settings):
    """The loop.

    Attributes:
        epochs: passes over the pictures.
        batch_size: pictures in a step, over all ranks.
        seed: of the start values, the order of pictures and their crops.
        crop_batching: "by_size" sends crops of one size through the network together (faster); "single" sends
            each view alone, which is exactly the published training.
        device: "auto" is an NVIDIA or AMD GPU where there is one.
        accumulate: parts that a batch is cut into, over all ranks; one after the other goes through the networks,
            so that memory is needed for one part. Labels are solved over the whole batch; BatchNorm sees a part.
        precision: of the networks. "auto" is bfloat16 where the device computes it natively, else float32. float16
            scales the loss.
        compile: torch.compile the backbones; it takes a while at the start.
        checkpoint_activations: keep fewer activations and compute them again on the way back: less memory, about a
            third more time.
        channels_last: memory layout of convolutions; faster nearly everywhere.
        workers: processes that read and crop pictures; "auto" leaves a core for the training.
        deterministic: also on a GPU the same bits every time, at some cost of speed.
    """

    epochs: PositiveInt = 400
    batch_size: PositiveInt = 4096
    seed: int = Field(0, ge=0, lt=2**32)
    crop_batching: Literal["by_size", "single"] = "by_size"
    device: str = "auto"
    accumulate: PositiveInt = 1
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False
    checkpoint_activations: bool = False
    channels_last: bool = True
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=1024)] = "auto"
    deterministic: bool = False


class MonitorSettings(Settings):
    """What is written down meanwhile.

    Attributes:
        log_every: steps between lines of metrics; only these are read back from the device. "auto" is ten an
            epoch, at most every 50 steps.
        checkpoint_every: epochs between checkpoints (fractions are allowed).
        keep_checkpoints: how many of the newest are kept; beside them the best by online k-NN, as `best.pt`.
        knn_every: epochs between online k-NN evaluations where there are labels; 0 for none.
        knn_pictures: at most so many pictures take part in one.
        on_collapse: what to do when the pseudo-labels, the prototypes or the features have collapsed. "stop" with a
            diagnosis; "mend" the run once, which goes back to the last good checkpoint and on from there with what
            helps against it, and stops at the next; or "continue".
        boards: where metrics go beside `metrics.jsonl`: "tensorboard", "wandb", "mlflow"; "auto" is TensorBoard where
            it is installed.
    """

    log_every: Literal["auto"] | PositiveInt = "auto"
    checkpoint_every: float = Field(1.0, gt=0.0, le=1e9)
    keep_checkpoints: int = Field(2, ge=1, le=10**9)
    knn_every: float = Field(5.0, ge=0.0, le=1e9)
    knn_pictures: int = Field(4000, ge=100, le=10**9)
    on_collapse: Literal["stop", "mend", "continue"] = "stop"
    boards: Literal["auto"] | tuple[BoardName, ...] = "auto"


class EvaluationSettings(Settings):
    """How pictures are brought to the backbone after training.

    Attributes:
        size: side of the input, pixels; "auto" is the side of the global crops.
        resize: short side before the centre crop; "auto" is size x 256 / 224.
    """

    size: Literal["auto"] | Annotated[int, Field(ge=1, le=LARGEST_SIDE)] = "auto"
    resize: Literal["auto"] | Annotated[int, Field(ge=1, le=LARGEST_SIDE)] = "auto"


class Recipe(Settings):
    """One reproducible run. The defaults are the paper's ImageNet run."""

    name: str = "custom"
    description: str = ""
    data: DataSettings = DataSettings()
    crops: CropSettings = CropSettings()
    model: ModelSettings = ModelSettings()
    assignment: AssignmentSettings = MiraSettings()
    teacher: TeacherSettings = TeacherSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    training: TrainingSettings = TrainingSettings()
    monitor: MonitorSettings = MonitorSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _possible(self) -> "Recipe":
        if self.optimiser.warmup_epochs >= self.training.epochs:
            raise ValueError(
                f"optimiser.warmup_epochs is {self.optimiser.warmup_epochs:g} and training.epochs is "
                f"{self.training.epochs}: the warm-up must be shorter than the run"
            )
        if self.model.prototypes.freeze_epochs >= self.training.epochs:
            raise ValueError(
                f"model.prototypes.freeze_epochs is {self.model.prototypes.freeze_epochs} and training.epochs is "
                f"{self.training.epochs}: the prototypes would never learn"
            )
        if self.training.batch_size < 2:
            raise ValueError("training.batch_size must be at least 2: BatchNorm and the labels need company")
        if self.training.batch_size < 2 * self.training.accumulate:
            raise ValueError(
                f"training.batch_size is {self.training.batch_size} and training.accumulate is "
                f"{self.training.accumulate}: a part of a batch needs two pictures at least"
            )
        for key in ("mean", "std"):
            values = getattr(self.data, key)
            if values is not None and len(values) != self.model.backbone.channels:
                raise ValueError(
                    f"data.{key} has {len(values)} values and model.backbone.channels is "
                    f"{self.model.backbone.channels}: give one value per channel"
                )
        if self.data.mix_shards is not None and self.data.cache == "disk":
            raise ValueError("data.mix_shards is for tar files that are read as they are: leave it out or data.cache")
        if self.data.std is not None and min(self.data.std) <= 0:
            raise ValueError("data.std must be positive")
        size, resize = self.evaluation.size, self.evaluation.resize
        if size != "auto" and resize != "auto" and resize < size:
            raise ValueError(f"evaluation.resize ({resize}) must be at least evaluation.size ({size})")
        return self
