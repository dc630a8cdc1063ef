"""What every protocol with labels asks of its pictures."""

from collections.abc import Sequence

from mira.data import PictureSource


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
            f"training and test pictures have different classes ({_few(train.classes)} and "
            f"{_few(test.classes)}): use two parts of one data set."
        )
    assert train.labels is not None
    if len(train.labels) and train.labels.min() == train.labels.max():
        raise ValueError(
            f"all {len(train.labels)} labelled pictures of {train.name} are of one class (number "
            f"{int(train.labels[0])}): {protocol} needs two or more."
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... {len(names)} in all" if len(names) > 3 else "")
