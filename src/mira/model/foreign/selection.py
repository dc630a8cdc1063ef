"""The backbone among a checkpoint's tensors: which layout the names are of, and which of them are the backbone's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mira.model.foreign.layouts import LAYOUTS, PLAIN, Branch, Layout

# A torchvision ResNet taken apart by `nn.Sequential(*children)`: activation and pooling, 2 and 3, have no tensors.
_RESNET_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class Selection:
    """The backbone's tensors of one branch, under the backbone's own names; `left_out` is all the rest of the file."""

    layout: Layout
    branch: Branch
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...]


def select(tensors: Mapping[str, Tensor], *, layout: str = "auto", which: str = "teacher") -> Selection:
    """The backbone in a checkpoint's tensors.

    Args:
        tensors: all of the file, as `mira.model.weights.read_weights` gives them.
        layout: a name from `LAYOUTS`, or "auto" to recognise it.
        which: "teacher" or "student"; a layout with one network has the same for both.

    Raises:
        ValueError: an unknown layout, one that cannot be recognised or is not the file's, a branch that the file does
            not hold, or names that the layout does not have.
    """
    if which not in {"teacher", "student"}:
        raise ValueError(f"which must be 'teacher' or 'student', not '{which}'")
    found = recognise(tensors) if layout == "auto" else _by_name(layout)
    branch = found.teacher if which == "teacher" else found.student
    other = found.student if which == "teacher" else found.teacher
    dropped = (*found.left_out, *((other.backbone,) if other is not branch else ()))
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(dropped)}
    own = {name.removeprefix(branch.backbone): rest[name] for name in rest if name.startswith(branch.backbone)}
    if not own:
        held = other is not branch and any(name.startswith(other.backbone) for name in tensors)
        advice = (
            f"It holds {other.name}: pass which='{'student' if which == 'teacher' else 'teacher'}'"
            if held
            else "Pass the layout that wrote it"
        )
        raise ValueError(
            f"no names begin with '{branch.backbone}', the {which} of the layout '{found.name}'; "
            f"{beginnings(tensors)}. {advice}"
        )
    if strangers := [name for name in rest if not name.startswith(branch.backbone)]:
        more = f" and {len(strangers) - 8} more" if len(strangers) > 8 else ""
        raise ValueError(f"the layout '{found.name}' has no names {', '.join(strangers[:8])}{more}")
    left_out = tuple(start for start in dropped if any(name.startswith(start) for name in tensors))
    return Selection(found, branch, _with_names_of_children(own), left_out)


def recognise(names: Iterable[str]) -> Layout:
    """The layout that the names of a file's tensors mark.

    Raises:
        ValueError: the names fit several layouts, or a backbone alone whose padding they do not tell.
    """
    names = list(names)
    fits = [
        layout
        for layout in LAYOUTS
        if layout.marks and all(any(name.startswith(mark) for name in names) for mark in layout.marks)
    ]
    # What bears all the marks of one layout and more is the other.
    fits = [a for a in fits if not any(set(a.marks) < set(b.marks) for b in fits)]
    if len(fits) > 1:
        raise ValueError(
            f"the names fit the layouts {' and '.join(layout.name for layout in fits)}; {beginnings(names)}. "
            "Pass the right one"
        )
    if fits:
        return fits[0]
    if any(name.endswith("running_mean") for name in names) and not any(_is_counter(name) for name in names):
        raise ValueError(
            "its BatchNorms have no num_batches_tracked, as in files older than PyTorch 0.4.1 and in BYOL converted "
            "from JAX, whose convolutions pad otherwise. Pass layout='plain' for the first, 'byol-jax' for the second"
        )
    return PLAIN


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _by_name(name: str) -> Layout:
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise ValueError(f"there is no layout '{name}'. Known: auto, {', '.join(layout.name for layout in LAYOUTS)}")


def beginnings(names: Iterable[str]) -> str:
    """What the names of a file begin with, in words."""
    first = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
    return f"the names begin with {', '.join(first[:8])}{', ...' if len(first) > 8 else ''}"


def _with_names_of_children(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet saved as a sequence of its children, under the names that they had."""
    split = {name: name.partition(".") for name in tensors}
    if not all(first in _RESNET_CHILDREN for first, _, _ in split.values()):
        return tensors
    return {f"{_RESNET_CHILDREN[split[name][0]]}.{split[name][2]}": tensor for name, tensor in tensors.items()}
