"""Parity with the published implementation: outputs, loss terms, gradients and a three-step trajectory."""

import pytest
import torch
from torch import Tensor

from dmd.losses.terms import all_terms
from dmd.model.config import MODALITIES
from dmd.published.parameter_names import GD_UNIT, slots, to_published
from tests.support.golden import LETTER, SETTINGS, Golden, relative_error

TOLERANCE = 1e-5
LOSSES = {
    "rec": "reconstruction",
    "cyc": "cycle",
    "margin": "margin",
    "homo_reg": "homo_regulariser",
    "homo_logit": "homo_logit",
    "hetero_reg": "hetero_regulariser",
    "hetero_logit": "hetero_logit",
    "hetero_repr": "hetero_representation",
    "total": "total",
    "ort_reference": "orthogonality",
    "task_output_logit": "task_fused",
    "task_logits_c": "task_shared",
    **{f"task_logits_{LETTER[m]}_{space}": f"task_{m}_{space}" for m in MODALITIES for space in ("homo", "hetero")},
}


@pytest.fixture(params=SETTINGS)
def golden(request) -> Golden:
    return Golden(request.param)


def run(golden: Golden, prefix: str = "in/", **objective: str):
    model, losses = golden.build(**objective)
    text, audio, vision, labels = golden.batch(prefix)
    output = model(text, audio, vision)
    labels = labels.reshape(1, -1)
    return model, losses, output, losses(output, labels, torch.ones_like(labels))


def close(got: Tensor, want: Tensor, name: str) -> None:
    error = relative_error(got, want)
    assert error <= TOLERANCE, f"{name}: relative error {error:.1e}"


def test_outputs(golden):
    _, _, out, terms = run(golden)
    for m in MODALITIES:
        letter, parts = LETTER[m], out.decoupled
        for published, tensor in (
            (f"origin_{letter}", parts.origin[m]),
            (f"s_{letter}", parts.private[m]),
            (f"c_{letter}", parts.shared[m]),
            (f"recon_{letter}", parts.reconstructed[m]),
            (f"s_{letter}_r", parts.private_again[m]),
        ):
            want = golden[f"out/{published}"]
            if want.shape[:2] == (tensor.shape[1], tensor.shape[0]):  # time first there
                want = want.transpose(0, 1)
            close(tensor, want if want.shape == tensor.shape else want.transpose(1, 2), published)
        close(out.margin_features[m], golden[f"out/c_{letter}_sim"], f"c_{letter}_sim")
        close(out.homo_repr[m], golden[f"out/repr_{letter}_homo"], f"repr_{letter}_homo")
        close(out.hetero_repr[m], golden[f"out/repr_{letter}_hetero"], f"repr_{letter}_hetero")
        for space in ("homo", "hetero"):
            close(out.predictions[f"{m}_{space}"], golden[f"out/logits_{letter}_{space}"], f"logits_{letter}_{space}")
    close(out.predictions["fused"], golden["out/output_logit"], "output_logit")
    close(out.predictions["shared"], golden["out/logits_c"], "logits_c")
    for space in ("homo", "hetero"):
        close(terms[f"edges_{space}"][0], golden[f"edges/{space}"].mean(1), f"edges {space}")


def test_loss_terms(golden):
    *_, terms = run(golden)
    assert set(LOSSES.values()) == {term.name for term in all_terms()} | {"total"}
    for published, ours in LOSSES.items():
        close(terms[ours][0], golden[f"loss/{published}"], published)


def test_orthogonality_of_the_paper(golden):
    *_, terms = run(golden, orthogonality="feature")
    close(terms["orthogonality"][0], golden["loss/ort_paper"], "ort_paper")


def test_gradients(golden):
    model, losses, _, terms = run(golden)
    terms["total"].sum().backward()
    assert all(p.grad is not None for module in (model, losses) for p in module.parameters()), "a dead parameter"
    found = by_published_name(model, losses, gradient=True)
    want = golden.under("grad/")
    assert found.keys() == want.keys()
    norm = torch.cat([g.flatten() for g in want.values()]).norm()
    for name, gradient in want.items():
        error = float((found[name].flatten() - gradient.flatten()).norm())
        assert error <= TOLERANCE * max(float(gradient.norm()), 1e-3 * float(norm)), (name, error)
    close(torch.cat([found[k].flatten() for k in want]), torch.cat([g.flatten() for g in want.values()]), "all")


def train_three_steps(golden: Golden, dtype: torch.dtype):
    """Two ghost batches a step, run as one forward; the golden run sums their gradients."""
    model, losses = golden.build()
    model.to(dtype), losses.to(dtype)
    optimizer = torch.optim.Adam([*model.parameters(), *losses.parameters()], lr=golden.settings["lr"])
    totals, gradients = [], []
    for step in range(3):
        batches = [golden.batch(f"traj/in/{2 * step + g}/") for g in range(2)]
        text, audio, vision = (torch.cat(parts).to(dtype) for parts in list(zip(*batches, strict=True))[:3])
        labels = torch.stack([labels.flatten() for *_, labels in batches]).to(dtype)
        terms = losses(model(text, audio, vision), labels, torch.ones_like(labels))
        totals += terms["total"].detach()
        optimizer.zero_grad()
        terms["total"].sum().backward()
        gradients.append(by_published_name(model, losses, gradient=True))
        optimizer.step()
    model.eval()
    prediction = model(*(golden[f"eval/in/{m}"].to(dtype) for m in MODALITIES)).predictions["fused"]
    return totals, gradients, by_published_name(model, losses), prediction


def by_published_name(model: torch.nn.Module, losses: torch.nn.Module, gradient: bool = False) -> dict[str, Tensor]:
    result = {}
    for prefix, module, table in (
        ("dmd", model, slots(model.config.levels)),
        ("homo", losses.homo, list(GD_UNIT)),
        ("hetero", losses.hetero, list(GD_UNIT)),
    ):
        tensors = {name: (p.grad if gradient else p).detach().clone() for name, p in module.named_parameters()}
        result.update({f"{prefix}/{name}": tensor for name, tensor in to_published(tensors, table).items()})
    return result


def test_trajectory_of_three_adam_steps(golden):
    """Losses, final norms and a prediction.

    Adam makes steps of up to lr out of a gradient that is nothing but rounding: key biases, which the softmax cancels,
    and biases of the fused head in a step where as many predictions are too high as too low. Such elements are found
    by comparing float32 with float64 gradients; only they may differ, and only by those steps.
    """
    totals, gradients, state, prediction = train_three_steps(golden, torch.float32)
    _, gradients64, _, prediction64 = train_three_steps(golden, torch.float64)
    for number, total in enumerate(totals):
        close(total, golden[f"traj/loss/{number}"], f"loss {number}")
    step = 2 * golden.settings["lr"]
    noisy = set()
    for name, norm in golden.under("traj/final_norm/").items():
        if name not in state:
            continue  # a parameter that the published code never uses
        allowed = TOLERANCE * float(norm)
        for got, exact in zip(gradients, gradients64, strict=True):
            is_noise = (got[name] - exact[name]).abs() > 0.01 * exact[name].abs()
            allowed += step * float(is_noise.sum()) ** 0.5
            noisy |= {name} if is_noise.any() else set()
        assert abs(float(state[name].norm()) - float(norm)) <= allowed, name
    exact = [name for name in state if name not in noisy]
    assert len(exact) > 0.8 * len(state)
    spread = relative_error(prediction, prediction64)  # what those steps alone do to a prediction
    assert relative_error(prediction, golden["eval/output_logit"]) <= max(TOLERANCE, 2 * spread)
