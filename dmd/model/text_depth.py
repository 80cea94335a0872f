"""How deep in a text encoder a parameter lies: what learning rates by layer are made of."""

from torch import nn


def depths(network: nn.Module) -> dict[str, int]:
    """Depth of each parameter by name: 0 for embeddings, n for the n-th layer; what follows the last one is with it.

    Args:
        network: a transformers model whose layers are a `ModuleList` of `num_hidden_layers`.

    Raises:
        ValueError: a network without such a list.
    """
    place, layers = _layers(network)
    embeddings = {
        f"{name}.{own}" if name else own
        for name, module in network.named_modules()
        if isinstance(module, nn.Embedding)
        for own, _ in module.named_parameters()
    }
    found: dict[str, int] = {}
    outside = 0
    for name, _ in network.named_parameters():
        if name.startswith(f"{place}."):
            outside = layers
            found[name] = 1 + int(name[len(place) + 1 :].partition(".")[0])
        else:
            found[name] = 0 if name in embeddings else outside
    return found


def _layers(network: nn.Module) -> tuple[str, int]:
    """Name and length of the list of layers."""
    count = int(network.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, count
    raise ValueError(
        f"a text encoder of type {network.config.model_type!r} has no list of {count} layers, "  # type: ignore[union-attr]
        "by which text.layer_decay goes; set text.layer_decay=1"
    )
