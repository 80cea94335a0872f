"""What an error says, in one line."""


def first_line(error: BaseException, longest: int | None = None) -> str:
    """The first line of an error's message; its type's name where it has none.

    Args:
        longest: characters that are kept; None: all.
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:longest]
