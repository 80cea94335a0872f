"""The README.md of an exported ensemble, the hub's model card (`dmd.inference.readme`); each member has its own."""

from collections.abc import Iterator, Sequence
from importlib.resources import files

from dmd.data.targets import scoring_of
from dmd.inference.ensemble import Calibration
from dmd.inference.model_files import EnsembleDocument
from dmd.inference.readme import DATASET, PLACE, TASKS, cell, checkpoint_cell, nearest_preset, what_it_does
from dmd.metrics import Scoring, heading, known_metrics, show, unit_note
from dmd.system.trained_model import ModelCard, config_of


def ensemble_readme(
    cards: Sequence[ModelCard], document: EnsembleDocument, *, name: str, license: str | None, place: str = PLACE
) -> str:
    """The text of the README.

    Args:
        cards: of the members, in the order of the document.
        name: what the ensemble is called.
        license: as the hub names it, such as `mit`.
        place: what `dmd.from_pretrained` is given.
    """
    from huggingface_hub import ModelCard as HubCard  # half a second, which loading a model does not need
    from huggingface_hub import ModelCardData
    from jinja2 import Environment

    first = cards[0]
    scoring = scoring_of(config_of(first), first.data)
    front = ModelCardData(
        license=license,
        library_name="dmd-cluster",
        tags=["dmd", "multimodal", "ensemble", TASKS[scoring.kind][0]],
        datasets=[first.data["name"]] if DATASET.fullmatch(first.data["name"]) else None,
        model_name=name,
    )
    template = files("dmd.inference").joinpath("ensemble_card.md.j2").read_text(encoding="utf-8")
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    text = environment.from_string(template).render(
        card_data=front.to_yaml(),
        name=name,
        place=place,
        what=what_it_does(scoring),
        count=len(cards),
        members=[_member(*pair) for pair in zip(document.members, cards, strict=True)],
        rows=list(_rows(document)),
        note=unit_note(known_metrics(document.metrics.get("ensemble", {}))) if document.metrics else "",
        uncertainty=_uncertainty(document.calibration, scoring),
        license=license,
    )
    return str(HubCard(text))  # which reads the front matter again, and so checks it


def _member(directory: str, card: ModelCard) -> dict[str, str]:
    preset, changed = nearest_preset(card)
    differs = f", from which differ {', '.join(f'`{line}`' for line in changed)}" if changed else ""
    return {
        "directory": directory,
        "seed": str(config_of(card).train.seed),
        "checkpoint": checkpoint_cell(card),
        "data": f"{cell(card.data['name'])}, generation `{cell(card.data['generation'])}`",
        "config": f"nearest to the preset `{preset}`{differs}",
    }


def _rows(document: EnsembleDocument) -> Iterator[tuple[str, str, str]]:
    """Heading of a metric, that of the ensemble, the mean of the members."""
    if not document.metrics:
        return
    whole, mean = document.metrics["ensemble"], document.metrics["members_mean"]
    for name in known_metrics(whole):
        values = (whole[name], mean.get(name))
        yield cell(heading(name)), *("–" if value is None else show(name, value) for value in values)  # type: ignore[misc]


def _uncertainty(calibration: Calibration | None, scoring: Scoring) -> str:
    if calibration is None:
        return "It is not calibrated: `result.spread` says how far the members are apart, `result.uncertainty` is None."
    fitted = f"fitted on the {calibration.samples} validation samples of {cell(calibration.data)}"
    if scoring.kind == "regression":
        return (
            f"`result.spread` [N] is the standard deviation of the members' sentiments. Times {calibration.value:.3g}, "
            f"{fitted}, it is `result.uncertainty`, the standard deviation of the error."
        )
    return (
        "`result.spread` is the standard deviation of each probability over the members. `result.uncertainty` is the "
        f"probability that an answer is wrong, by logits over a temperature of {calibration.value:.3g}, {fitted}."
    )
