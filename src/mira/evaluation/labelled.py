"""What every protocol with labels asks of its pictures."""

from mira.data import PictureSource
from mira.data.sources import ShardedSource
from mira.wording import few


def check_labels(protocol: str, train: PictureSource, test: PictureSource) -> None:
    """Refuse pictures without labels, of other classes, or all of one class.

    Raises:
        ValueError: which of these it is, and what to do.
    """
    for role, source in (("training", train), ("test", test)):
        if source.labels is None:
            raise ValueError(
                f"{protocol} needs labels and the {role} pictures of {source.name} have none: if the first folder "
                "level is the class, open them with labels='folder' (--labels folder)."
            )
    if tuple(train.classes) != tuple(test.classes):
        raise ValueError(
            f"training and test pictures have different classes ({few(train.classes)} and "
            f"{few(test.classes)}): use two parts of one data set."
        )
    assert train.labels is not None
    if len(train.labels) and train.labels.min() == train.labels.max():
        raise ValueError(
            f"all {len(train.labels)} labelled pictures of {train.name} are of one class (number "
            f"{int(train.labels[0])}): {protocol} needs two or more."
        )


def check_room(protocol: str, source: PictureSource) -> None:
    """Refuse remote shards that do not fit on the disk where pictures are read in random order, epoch by epoch.

    Raises:
        ValueError: they do not; with what to do.
    """
    if isinstance(source, ShardedSource) and sum(source.fetched_sizes) > source.room:
        size, room = sum(source.fetched_sizes) / 2**30, source.room / 2**30
        raise ValueError(
            f"{protocol} reads {source.name} in random order, so all of its {size:.2f} GB must fit on the disk, and "
            f"copies may take {room:.2f}: set the environment variable MIRA_CACHE_GIGABYTES, or take a protocol that "
            "makes one pass (linear-fast, logistic, knn)"
        )
