"""Self-MM: the labels of single modalities, computed by hand; what a training remembers."""

import math
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from dmd.checkpoint.format import MODEL, OPTIMIZER
from dmd.checkpoint.storage_trial import checkpoint_sizes
from dmd.config import Config
from dmd.data.plan import EpochPlan
from dmd.distributed.engine import SystemSizes
from dmd.distributed.sharing import join_sharing
from dmd.losses.baselines.self_mm import SelfMMObjective
from dmd.losses.baselines.unimodal_labels import SPACES, UnimodalLabels
from dmd.losses.sharing import WHOLE, Part
from dmd.model.baselines.self_mm import SelfMM, alone
from dmd.model.baselines.self_mm_config import SelfMMConfig
from dmd.model.config import ModelConfig
from dmd.model.network import NetworkOutput
from tests.support.ranks import on_ranks

SAMPLES = 7
OWN = SelfMMConfig(fused_dim=3, text_dim=2, audio_dim=2, vision_dim=4)


def feature_table(epoch: int) -> dict[str, torch.Tensor]:
    """Representations [N, width] that a network could have had in an epoch."""
    generator = torch.Generator().manual_seed(epoch)
    return {name: torch.randn(SAMPLES, width, generator=generator).relu() for name, width in OWN.widths.items()}


SENTIMENTS = torch.tensor([2.0, -1.0, 0.0, -2.4, 0.6, -0.2, 1.8])
BATCHES = [[[4, 0, 2], [1, 6], [3, 5]], [[5, 1], [0, 3, 6], [2, 4]], [[2, 6, 1], [0, 3], [5, 4]]]
"""Rows of each ghost batch of three epochs."""


def mean_of(vectors: list[list[float]], members: list[bool]) -> list[float]:
    """Of those that are members and known."""
    chosen = [vector for vector, member in zip(vectors, members, strict=True) if member and vector]
    return [sum(column) / len(chosen) for column in zip(*chosen, strict=True)]


def relative_distance(vector: list[float], positive: list[float], negative: list[float]) -> float:
    near, far = math.dist(vector, positive), math.dist(vector, negative)
    return (far - near) / (near + 1e-8)


def by_hand(own: SelfMMConfig) -> dict[str, list[float]]:
    """The labels after all epochs, by the formulas of the published code, one number at a time."""
    labels = {name: SENTIMENTS.tolist() for name in SPACES}
    stored: dict[str, list[list[float]]] = {name: [[] for _ in range(SAMPLES)] for name in SPACES}

    def centres_of(name: str) -> tuple[list[float], list[float]]:
        positive = [label > 0 or (label == 0 and not own.exclude_zero) for label in labels[name]]
        negative = [label < 0 for label in labels[name]]
        return mean_of(stored[name], positive), mean_of(stored[name], negative)

    for epoch, batches in enumerate(BATCHES, start=1):
        table = {name: feature.tolist() for name, feature in feature_table(epoch).items()}
        for rows in batches:
            if epoch >= own.first_epoch:
                centres = {name: centres_of(name) for name in SPACES}
                moved = []
                for row in rows:
                    said = {name: relative_distance(table[name][row], *centres[name]) for name in SPACES}
                    y = labels["fused"][row]
                    for name in SPACES[1:]:
                        alpha = said[name] / (said["fused"] + 1e-8)
                        new = 0.5 * alpha * y + 0.5 * (y + said[name] - said["fused"])
                        new = min(max(new, -own.label_limit), own.label_limit)
                        weighed = (epoch - 1) / (epoch + 1) * labels[name][row] + 2 / (epoch + 1) * new
                        moved.append((name, row, weighed))
                for name, row, label in moved:
                    labels[name][row] = label
            for row in rows:
                for name in SPACES:
                    stored[name][row] = table[name][row]
    return labels


def remembered(own: SelfMMConfig, epochs: range = range(1, len(BATCHES) + 1)) -> UnimodalLabels:
    """The same by the program."""
    labels = UnimodalLabels(SAMPLES, own, torch.device("cpu"))
    for epoch in epochs:
        take_epoch(labels, epoch)
    return labels


def take_epoch(labels: UnimodalLabels, epoch: int) -> None:
    table = feature_table(epoch)
    for rows in BATCHES[epoch - 1]:
        labels.take(torch.tensor(rows), SENTIMENTS[rows], {n: f[rows] for n, f in table.items()}, epoch=epoch)


@pytest.mark.parametrize("settings", [{}, {"exclude_zero": True}, {"first_epoch": 3}, {"label_limit": 0.5}], ids=str)
def test_labels_are_those_of_the_published_formulas(settings):
    own = SelfMMConfig(**{"fused_dim": 3, "text_dim": 2, "audio_dim": 2, "vision_dim": 4} | settings)
    expected = by_hand(own)
    found = remembered(own).of(torch.arange(SAMPLES), SENTIMENTS)
    for name, label in found.items():
        torch.testing.assert_close(label, torch.tensor(expected[name]), rtol=1e-5, atol=1e-6)
        assert not label.equal(SENTIMENTS)


def test_the_sums_of_a_class_are_those_of_the_samples_that_have_its_labels():
    labels = remembered(OWN)
    for number, name in enumerate(SPACES):
        own = labels.labels[number]
        members = torch.stack([own >= 0, own < 0]).double()
        torch.testing.assert_close(labels.sums[name], members @ labels.features[name].double())
        assert labels.counts[number].equal(members.sum(1))


def test_labels_are_the_sentiments_before_their_first_epoch_and_of_samples_that_no_step_took():
    labels = remembered(OWN, range(1, 2))
    assert all(label.equal(SENTIMENTS) for label in labels.of(torch.arange(SAMPLES), SENTIMENTS).values())
    fresh = UnimodalLabels(SAMPLES, OWN, torch.device("cpu"))
    assert all(label.equal(SENTIMENTS) for label in fresh.of(torch.arange(SAMPLES), SENTIMENTS).values())


def test_labels_stay_where_a_class_has_no_sample():
    labels = UnimodalLabels(SAMPLES, OWN, torch.device("cpu"))
    positive = [0, 2, 4, 6]
    for epoch in (1, 2):
        features = {name: feature[positive] for name, feature in feature_table(epoch).items()}
        labels.take(torch.tensor(positive), SENTIMENTS[positive], features, epoch=epoch)
    found = labels.of(torch.tensor(positive), SENTIMENTS[positive])
    assert all(label.equal(SENTIMENTS[positive]) for label in found.values())


def test_a_state_continues_bitwise():
    whole = remembered(OWN)
    half = remembered(OWN, range(1, 3))
    continued = UnimodalLabels(SAMPLES, OWN, torch.device("cpu"))
    continued.load({name: tensor.clone() for name, tensor in half.state().items()})
    take_epoch(continued, 3)
    assert whole.state().keys() == continued.state().keys()
    assert all(tensor.equal(continued.state()[name]) for name, tensor in whole.state().items())


PUBLISHED = {"text": 768, "audio": 5, "vision": 20}
"""Features of CMU-MOSI."""


def weights_of(*layers: nn.Module) -> int:
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters())


def test_the_network_has_the_parameters_of_the_published_one():
    def branch(width: int, dim: int) -> int:
        return weights_of(nn.Linear(width, dim), nn.Linear(dim, dim), nn.Linear(dim, 1))

    wanted = weights_of(nn.LSTM(5, 32), nn.Linear(32, 16), nn.LSTM(20, 64), nn.Linear(64, 32))
    wanted += branch(768 + 16 + 32, 128) + branch(768, 64) + branch(16, 16) + branch(32, 32)
    own = SelfMMConfig(text_pooling="first")
    network = SelfMM(ModelConfig(task="regression"), PUBLISHED, dict.fromkeys(PUBLISHED, 50), settings=own)
    assert weights_of(network) == wanted


def padded(sequences: list[Tensor], steps: int, *, in_front: bool) -> Tensor:
    """[B, T, D]"""
    rows = []
    for sequence in sequences:
        zeros = sequence.new_zeros(steps - len(sequence), sequence.shape[1])
        rows.append(torch.cat([zeros, sequence] if in_front else [sequence, zeros]))
    return torch.stack(rows)


@pytest.mark.parametrize("in_front", [False, True], ids=["padded behind", "padded in front"])
@pytest.mark.parametrize("pooling", ["first", "lstm", "mean"])
def test_the_network_is_the_published_one_over_sequences_without_padding(in_front, pooling):
    torch.manual_seed(0)
    own = SelfMMConfig(text_pooling=pooling, fused_dim=6, text_dim=5, audio_dim=4, vision_dim=3)
    sizes = {"text": 7, "audio": 5, "vision": 4}
    network = SelfMM(ModelConfig(task="regression"), sizes, dict.fromkeys(sizes, 6), settings=own).eval()
    given = {m: [torch.randn(length, dim) for length in (6, 1, 4)] for m, dim in sizes.items()}
    output = network(**{m: padded(sequences, 6, in_front=in_front) for m, sequences in given.items()})

    assert ("text" in network.states) == (pooling == "lstm")
    states = {"text": torch.stack([text[0] if pooling == "first" else text.mean(0) for text in given["text"]])}
    for modality, encoder in network.states.items():
        (layer,) = encoder.lstm.layers
        lstm = nn.LSTM(sizes[modality], encoder.out.in_features)
        lstm.load_state_dict(dict(zip(lstm.state_dict(), layer.parameters(), strict=True)))
        _, (last, _) = lstm(pack_sequence(given[modality], enforce_sorted=False))
        states[modality] = encoder.out(last[0])
    states["fused"] = torch.cat([states["text"], states["audio"], states["vision"]], dim=1)
    for name, branch in network.branches.items():
        representation = branch.represent(states[name]).relu()
        torch.testing.assert_close(output.compared[name], representation)
        head = name if name == "fused" else alone(name)
        torch.testing.assert_close(output.predictions[head], branch.out(branch.hidden(representation).relu())[:, 0])


def test_a_modality_without_any_step_says_the_same_of_all_samples():
    torch.manual_seed(0)
    sizes = {"text": 3, "audio": 2, "vision": 2}
    network = SelfMM(ModelConfig(task="regression"), sizes, dict.fromkeys(sizes, 4), settings=SelfMMConfig())
    said = network(torch.randn(3, 4, 3), torch.zeros(3, 4, 2), torch.randn(3, 4, 2)).predictions
    assert {head: len(set(of.tolist())) for head, of in said.items()} == {
        "fused": 3,
        "text_alone": 3,
        "audio_alone": 1,
        "vision_alone": 3,
    }


@pytest.mark.parametrize("task", [7, "multilabel"])
def test_other_tasks_than_regression_are_an_error_that_names_the_model(task):
    emotions = 4 if task == "multilabel" else 0
    with pytest.raises(ValueError, match=rf"model\.name is 'self_mm', .* and model\.task is {task!r}; set another"):
        Config(model=ModelConfig(name="self_mm", task=task, emotions=emotions))


GHOST = 2
"""Samples of a ghost batch, two ghost batches a step: the last step of an epoch has no second one."""
LOST = (1, 1)
"""Epoch and step that is not applied."""


def make_epoch_plan(ranks: int) -> EpochPlan:
    return EpochPlan(
        num_samples=SAMPLES,
        ghost_batch_size=GHOST,
        ghost_batches_per_step=2,
        ghost_batches_per_forward=1,
        num_ranks=ranks,
    )


def order_of(epoch: int) -> list[int]:
    return torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch)).tolist()


def test_what_is_remembered_counts_where_storage_is_tried():
    """Float32 representations and four labels of each sample, one byte that it was seen; float64 sums and counts."""
    sizes = SystemSizes(parameters=3, trained_bytes=12, state_bytes=16)
    width = sum(OWN.widths.values())
    remembered = SAMPLES * (4 * width + 4 * len(SPACES) + 1) + 8 * 2 * width + 8 * 2 * len(SPACES)
    objective = fresh_objective()
    assert objective.training_bytes() == remembered
    found = checkpoint_sizes(sizes, averages=True, objective=objective.training_bytes())
    assert found == {MODEL: 16, OPTIMIZER: 36 + remembered}


def fresh_objective() -> SelfMMObjective:
    objective = SelfMMObjective(OWN, ModelConfig(task="regression"))
    objective.start_training(SAMPLES, torch.device("cpu"))
    return objective


def run_objective(rank: int, ranks: int) -> dict[str, Tensor]:
    """What is remembered after two epochs, one step of which was not applied."""
    objective, plan = fresh_objective(), make_epoch_plan(ranks)
    objective.sharing = join_sharing(plan, rank, timedelta(minutes=1))
    for epoch in range(2):
        order = order_of(epoch)
        for step in range(plan.num_steps):
            for forward in range(plan.forwards_per_step):
                slots = plan.slots(step, forward, rank)
                ghosts = [[order[place] for place in plan.positions(step, ghost)] for ghost in slots]
                run_pass(objective, ghosts, plan.part(rank), feature_table(epoch))
            objective.after_step(epoch=epoch, applied=(epoch, step) != LOST)
    return objective.training_state()


def run_pass(objective: SelfMMObjective, ghosts: list[list[int]], part: Part, table: dict[str, Tensor]) -> Tensor:
    """The loss of each ghost batch, of which a rank has a part."""
    rows = torch.tensor([[*ghost, *[-1] * (GHOST - len(ghost))] for ghost in ghosts])
    places = list(part.places(GHOST))
    places += [places[-1]] * (part.slots(GHOST) - len(places))
    own = rows.clamp(min=0)[:, places].flatten()
    output = NetworkOutput(
        predictions={
            name if name == "fused" else alone(name): features[own].sum(1) for name, features in table.items()
        },
        representation=table["fused"][own],
        compared={name: features[own] for name, features in table.items()},
    )
    return objective(output, SENTIMENTS[rows.clamp(min=0)], (rows >= 0).float(), rows=rows)["total"]


def differing(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not bitwise identical."""
    assert found.keys() == wanted.keys()
    return [name for name, tensor in wanted.items() if not tensor.equal(found[name])]


def test_ghost_batches_of_a_step_are_taken_in_as_batches_of_the_published_code():
    labels, plan = UnimodalLabels(SAMPLES, OWN, torch.device("cpu")), make_epoch_plan(1)
    for epoch in range(2):
        order, table = order_of(epoch), feature_table(epoch)
        for step in range(plan.num_steps):
            for ghost in range(2 if (epoch, step) != LOST else 0):
                rows = [order[place] for place in plan.positions(step, ghost)] if 2 * step + ghost < 4 else []
                if rows:
                    own = {name: features[rows] for name, features in table.items()}
                    labels.take(torch.tensor(rows), SENTIMENTS[rows], own, epoch=epoch + 1)
    assert differing(run_objective(0, 1), labels.state()) == []


def remembered_by_rank(rank: int, _: Path) -> dict[str, Tensor]:
    return run_objective(rank, int(os.environ["WORLD_SIZE"]))


@pytest.mark.multiproc
@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_remembers_bitwise_what_one_rank_remembers(tmp_path, ranks):
    """Of three ranks two share a ghost batch."""
    wanted = run_objective(0, 1)
    assert [differing(found, wanted) for found in on_ranks(remembered_by_rank, tmp_path, ranks)] == [[]] * ranks


def test_the_loss_weighs_each_modality_by_what_its_label_differs_by():
    objective, table = fresh_objective(), feature_table(3)
    assert objective.labels is not None
    objective.labels.load(remembered(OWN).state())
    rows = [0, 5]
    (found,) = run_pass(objective, [rows], WHOLE, table)
    labels = by_hand(OWN)
    wanted = []
    for row in rows:
        y = SENTIMENTS[row].item()
        errors = [abs(table["fused"][row].sum().item() - y)]
        for name in SPACES[1:]:
            label = labels[name][row]
            errors.append(math.tanh(abs(label - y)) * abs(table[name][row].sum().item() - label))
        wanted.append(sum(errors))
    assert found.item() == pytest.approx(sum(wanted) / len(rows), rel=1e-5)


def test_evaluations_and_steps_that_are_not_applied_leave_nothing_behind():
    objective, table = fresh_objective(), feature_table(1)
    before = objective.training_state()
    run_pass(objective, [[0, 1]], WHOLE, table)
    objective.after_step(epoch=0, applied=False)
    run_pass(objective.eval(), [[2, 3]], WHOLE, table)
    assert differing(objective.training_state(), before) == []
    run_pass(objective.train(), [[4, 5]], WHOLE, table)
    objective.after_step(epoch=0, applied=True)
    assert objective.training_state()["seen"].nonzero().flatten().tolist() == [4, 5]
