"""The README.md of an export: what the Hugging Face hub calls a model card, made from what the export says of itself.

Its front matter is what the hub reads (https://huggingface.co/docs/hub/model-cards): library, tags, data, metrics,
results. A license is the user's choice; without one there is none. Paths of this machine are left out but for their
last part.
"""

import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from dmd.checkpoint.state import FREE_KEYS
from dmd.config.loading import config_to_dict, load_config
from dmd.config.preset_files import preset_names
from dmd.data.targets import scoring_of
from dmd.inference.training_facts import Measured, TrainingFacts
from dmd.metrics import Scoring, heading, known_metrics, metric, show, unit_note
from dmd.model.config import MODALITIES
from dmd.system.models import MODELS
from dmd.system.trained_model import ModelCard, config_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

README = "README.md"
PLACE = "OWNER/NAME"
"""What a README loads that is not pushed yet."""
TASKS = {
    "regression": ("multimodal-sentiment-analysis", "Multimodal sentiment analysis"),
    "classes": ("multimodal-emotion-recognition", "Multimodal classification"),
    "multilabel": ("multimodal-emotion-recognition", "Multimodal emotion recognition"),
}
"""Of a model: what the hub calls its task, and how people read it."""
_HUB_METRICS = {"MAE": "mae", "Corr": "pearsonr", "Acc": "accuracy", "F1": "f1"}
"""Family of a metric -> its name at https://hf.co/metrics; others have our names."""
DATASET = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
"""What may be the name of a data set on the hub."""
_UNTOLD = FREE_KEYS - {"text.encoder", "train.epochs", "train.max_steps", "train.early_stop", "train.precision"} | {
    "model.task",
    "model.emotions",
    "data.classes",
}
"""Config keys of devices, throughput and files, and those that the data decides and another section says."""
_ANSWERS = {"regression": "sentiment", "classes": "classes", "multilabel": "emotions"}


def readme(card: ModelCard, facts: TrainingFacts | None, *, name: str, license: str | None, place: str = PLACE) -> str:
    """The text of the README.

    Args:
        card: the model.
        facts: None: nothing is known of its training.
        name: what the model is called.
        license: as the hub names it, such as `mit`.
        place: what `dmd.from_pretrained` is given.
    """
    from huggingface_hub import ModelCard as HubCard  # half a second, which loading a model does not need
    from huggingface_hub import ModelCardData
    from jinja2 import Environment

    config = config_of(card)
    scoring, model = scoring_of(config, card.data), MODELS[config.model.name]
    facts = TrainingFacts() if facts is None else facts
    front = ModelCardData(
        license=license,
        library_name="dmd-cluster",
        tags=[model.name, "multimodal", TASKS[scoring.kind][0]],
        datasets=[card.data["name"]] if DATASET.fullmatch(card.data["name"]) else None,
        metrics=sorted({_hub_metric(name) for part in facts.measured for name in known_metrics(part.metrics)}) or None,
        model_name=name,
        eval_results=[result for part in facts.measured for result in _results(part, scoring)] or None,
    )
    template = files("dmd.inference").joinpath("model_card.md.j2").read_text(encoding="utf-8")
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    text = environment.from_string(template).render(
        card_data=front.to_yaml(),
        name=name,
        model=model,
        place=place,
        what=what_it_does(scoring),
        answer=_ANSWERS[scoring.kind],
        inputs=_inputs(card),
        text=_text(card),
        extraction=list(_extraction(card.data.get("extraction") or {})),
        outputs=_outputs(scoring),
        training=list(_training(card, facts)),
        measured=[_section(part) for part in facts.measured],
        limits=list(_limits(card, facts, license)),
        versions=_listed(card.source.get("versions")),
    )
    return str(HubCard(text))  # which reads the front matter again, and so checks it


def _hub_metric(name: str) -> str:
    row = metric(name)
    return _HUB_METRICS.get(row.family or row.title.partition(" ")[0], row.name)


def _results(part: Measured, scoring: Scoring) -> "Iterable[EvalResult]":
    """A result per metric that is defined; shares in [0, 1], as `dmd evaluate --json` writes them."""
    from huggingface_hub import EvalResult

    task, title = TASKS[scoring.kind]
    for name in known_metrics(part.metrics):
        value = part.metrics[name]
        if value is not None:
            yield EvalResult(
                task_type=task,
                task_name=title,
                dataset_type=part.data,
                dataset_name=part.data,
                dataset_split=part.split,
                dataset_revision=part.generation,
                metric_type=_hub_metric(name),
                metric_name=f"{metric(name).title} (protocol {part.protocol})",
                metric_value=value,
            )


def what_it_does(scoring: Scoring) -> str:
    """What a model makes of a recording, as a sentence."""
    if scoring.kind == "regression":
        low, high = scoring.limits
        answer = f"a sentiment from {low:g} to {high:g}"
    elif scoring.kind == "classes":
        answer = f"one of {scoring.outputs} classes: {_words(scoring.titles)}"
    else:
        answer = f"which of {scoring.outputs} emotions are there: {_words(scoring.titles)}"
    return f"Words, voice and face of a speaker become {answer}."


def _inputs(card: ModelCard) -> list[dict[str, str]]:
    rows = []
    for modality in MODALITIES:
        is_tokens = modality == "text" and card.data["text_kind"] == "tokens"
        step = "a token: id, mask, type" if is_tokens else f"{card.data['dims'][modality]} features"
        rows.append({"modality": modality, "step": step, "steps": str(card.data["lengths"][modality])})
    return rows


def _text(card: ModelCard) -> str:
    """Where words come from: features, or a tokenizer and an encoder."""
    config, settings = config_of(card).text, card.text_encoder
    tokenizer = card.data.get("tokenizer") or {}
    made = f"`{shown_name(tokenizer['name'])}` (sha256 {cell(tokenizer['digest'])})" if tokenizer else ""
    if settings is None:
        return f"Words are features, taken from {made}." if made else "Words are features."
    lines = [f"Tokens are made by the tokenizer {made}." if made else "The tokenizer is not recorded."]
    kind = cell(settings.get("model_type", "unknown"))
    state = "frozen" if config.frozen else f"trained by LoRA of rank {config.lora_rank}" if config.lora else "trained"
    lines.append(f"The text encoder began as `{shown_name(config.encoder)}` (type {kind}, {state}).")
    base = card.text_base
    if base is not None:
        lines.append(
            f"Its own weights are not in here: `dmd.from_pretrained(..., text_encoder=PATH)` takes "
            f"`{shown_name(base['name'])}` (sha256 of the weights {cell(base['sha256'])})."
        )
    return " ".join(lines)


def _extraction(settings: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for key, value in settings.items():
        if value not in ("", {}, None):
            yield key, shown_name(value) if key == "text_encoder" else _listed(value)


def _outputs(scoring: Scoring) -> str:
    if scoring.kind == "regression":
        low, high = scoring.limits
        return f"`result.sentiment` [N] has the units of the data's labels, {low:g} to {high:g}."
    if scoring.kind == "classes":
        return "`result.classes` [N] are numbers into `result.names`, `result.probabilities` [N, classes] add up to 1."
    return "`result.emotions` [N, emotions] are booleans in the order of `result.names`, with `result.probabilities`."


def _training(card: ModelCard, facts: TrainingFacts) -> Iterable[tuple[str, str]]:
    data = card.data
    yield "data", f"{cell(data['name'])}, generation `{cell(data['generation'])}`"
    yield "samples", _listed(facts.counts) if facts.counts else "unknown"
    epochs = "" if facts.epochs is None else f" ({facts.epochs} epoch{'s' * (facts.epochs != 1)})"
    yield "checkpoint", checkpoint_cell(card) + ("" if card.averaged else epochs)
    preset, changed = nearest_preset(card)
    differs = f", from which differ {', '.join(f'`{line}`' for line in changed)}" if changed else ""
    yield "config", f"nearest to the preset `{preset}`{differs}"
    yield "commit of dmd-cluster", f"`{facts.commit}`" if facts.commit else "unknown"


def checkpoint_cell(card: ModelCard) -> str:
    """Which checkpoint the weights are of, or the mean of which they are."""
    if card.averaged:
        return f"steps {', '.join(map(str, card.averaged))}, the mean of their weights"
    return f"step {card.source.get('step', 'unknown')}"


def nearest_preset(card: ModelCard) -> tuple[str, list[str]]:
    """The shipped preset that the config of a training differs from in the fewest values, and these, as the command
    line takes them. A run does not record its preset, whose values may have changed since."""
    found = {name: _changes(card, name) for name in preset_names()}
    preset = min(found, key=lambda name: len(found[name]))
    return preset, found[preset]


def _changes(card: ModelCard, preset: str) -> list[str]:
    base = config_to_dict(load_config(preset))
    changed = []
    for section, values in config_to_dict(config_of(card)).items():
        for name, value in values.items():
            key = f"{section}.{name}"
            if key not in _UNTOLD and value != base[section][name]:
                changed.append(f"{key}={shown_name(value) if key == 'text.encoder' else cell(value)}")
    return changed


def _section(part: Measured) -> dict[str, Any]:
    split = {"valid": "validation", "test": "test"}.get(part.split, part.split)
    samples = "" if part.samples is None else f", {part.samples} samples"
    names = known_metrics(part.metrics)
    shown = {name: part.metrics[name] for name in names}
    return {
        "title": f"Result on the {split} split",
        "about": f"{cell(part.data)} (generation `{cell(part.generation)}`), {part.split} split{samples}.",
        "rows": [(cell(heading(name)), "–" if value is None else show(name, value)) for name, value in shown.items()],
        "note": unit_note(names),
    }


def _limits(card: ModelCard, facts: TrainingFacts, license: str | None) -> Iterable[str]:
    splits = {part.split for part in facts.measured}
    yield (
        "It predicts what the annotators of its data would have said of a recording, not what a person feels. It is no "
        "basis for decisions about people."
    )
    yield "It has seen one data set. Other speakers, languages and recordings were not measured."
    yield "Features of the same size that were made otherwise give numbers that mean nothing, without an error."
    if "valid" in splits:
        yield "The validation split chooses checkpoints, so its numbers are better than those of new data."
    else:
        yield "No validation of these weights is known."
    if "test" not in splits:
        yield "It says nothing of the test split: no result on it was put beside the run."
    yield "It is one training with one seed; another seed gives other numbers."
    if facts.published:
        yield "The weights come from a file of the published code, which lacks the GD-Units: the edges mean nothing."
    if license is None:
        yield "No license was chosen. Ask whoever published it before you use it."


def shown_name(name: object) -> str:
    """A name on the hub as it is; of a path its last part, since the others are of somebody's machine."""
    text = str(name)
    is_path = text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text
    return cell(PurePath(text.replace("\\", "/")).name if is_path else text)


def _words(words: Iterable[object]) -> str:
    return ", ".join(map(cell, words))


def _listed(values: object) -> str:
    """A mapping as `name value, name value`; anything else as it is."""
    if not isinstance(values, dict):
        return cell(values)
    return ", ".join(f"{cell(key)} {cell(value)}" for key, value in values.items())


def cell(value: object) -> str:
    """A value as a word of Markdown, on one line: it may come from anybody."""
    return re.sub(r"[|`<>\[\]\x00-\x1f\x7f]", " ", str(value))
