"""Named tuples of tensors that an autograd function keeps for its backward pass and gets back whole."""

from typing import Any


def save(ctx: Any, *parts: Any) -> None:
    """Keep named tuples of tensors (or None). Call it once in a forward pass, in place of `ctx.save_for_backward`."""
    ctx.saved_kinds = tuple(type(part) for part in parts)
    ctx.save_for_backward(*(tensor for part in parts for tensor in part))


def restore(ctx: Any) -> list[Any]:
    """The named tuples that `save` kept, in their order."""
    tensors = iter(ctx.saved_tensors)
    return [kind(*(next(tensors) for _ in kind._fields)) for kind in ctx.saved_kinds]
