"""Words that fit a number."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and what it counts: "1 picture", "2 pictures".

    Args:
        number: how many.
        one: the noun in the singular.
        many: in the plural; None where an "s" makes it.
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
