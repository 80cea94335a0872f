"""Weights that lie in one tensor: to the modules they are what they were, to an optimizer they are one."""

import pytest
import torch
from torch import nn

from dmd.system.joined_weights import ALIGNMENT, JoinedWeights, each_alone


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Conv1d(4, 2, 3), nn.LayerNorm(ALIGNMENT), nn.Linear(2, 2))


def test_weights_keep_value_shape_and_alignment():
    network, untouched = module(), module()
    weights = JoinedWeights(dict(network.named_parameters()))
    for own, before in zip(network.parameters(), untouched.parameters(), strict=True):
        assert own.equal(before)
        assert own.is_contiguous()
        assert own.is_leaf
        assert (own.data_ptr() - weights.whole.data_ptr()) % 512 == 0
    assert weights.whole.numel() < sum(p.numel() + ALIGNMENT for p in network.parameters())


def test_an_optimizer_of_the_whole_updates_every_weight():
    joined, apart = module(), module()
    weights = JoinedWeights(dict(joined.named_parameters()))
    optimizers = [torch.optim.Adam([weights.whole]), torch.optim.Adam(apart.parameters())]
    for step in range(3):
        for network in (joined, apart):
            generator = torch.Generator().manual_seed(step)
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        weights.join_gradients()
        assert all(parameter.grad is None for parameter in joined.parameters()), "kept twice"
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for own, other in zip(joined.parameters(), apart.parameters(), strict=True):
        assert own.equal(other)
    between = torch.ones(weights.whole.numel(), dtype=torch.bool)
    for part in weights.parts(between):
        part.fill_(False)
    assert between.any()
    assert not weights.whole.detach()[between].any(), "what lies between weights stays zero"


def test_a_missing_gradient_is_zero_and_a_joined_one_stays():
    network = module()
    weights = JoinedWeights(dict(network.named_parameters()))
    read = list(network.parameters())[3]
    read.grad = torch.ones_like(read)
    weights.join_gradients()
    assert weights.whole.grad is not None
    assert weights.whole.grad.sum() == read.numel()
    for name, part in zip(weights.parameters, weights.parts(weights.whole.grad), strict=True):
        assert bool(part.any()) == (weights.parameters[name] is read)
    given = weights.whole.grad
    weights.join_gradients()
    assert weights.whole.grad is given


@pytest.mark.parametrize("frozen", [False, True])
def test_a_weight_alone_is_its_own_whole(frozen):
    network = module()
    first = next(network.parameters())
    first.requires_grad_(not frozen)
    alone = each_alone(network.named_parameters())
    assert [each.whole for each in alone] == [p for p in network.parameters() if p.requires_grad]
    assert all(each.leaves == [each.whole] for each in alone)
    weight = alone[0].whole
    place = weight.data_ptr()
    weight.grad = gradient = torch.ones_like(weight)
    alone[0].join_gradients()
    assert weight.grad is gradient
    assert weight.data_ptr() == place
    alone[1].join_gradients()
    assert alone[1].whole.grad is not None
    assert not alone[1].whole.grad.any()


def test_autograd_joins_the_gradients_of_parts():
    network = module()
    weights = JoinedWeights(dict(network.named_parameters()))
    parts = weights.differentiable_parts(weights.whole)
    (parts[0].square().sum() + 2 * parts[3].sum() + parts[3].sum()).backward()
    assert weights.whole.grad is not None
    found = weights.parts(weights.whole.grad)
    assert found[0].equal(2 * parts[0])
    assert found[3].equal(torch.full_like(parts[3], 3))
    assert not any(found[number].any() for number in range(len(found)) if number not in (0, 3))


@pytest.mark.parametrize("shapes", [[(1000, 1000), (3, 5), (500, 1000)], [(1500, 1000)], [()], [(), (7,)]])
def test_the_norm_is_exact_however_many_numbers_there_are(shapes):
    torch.manual_seed(0)
    weights = JoinedWeights({str(number): nn.Parameter(torch.randn(shape)) for number, shape in enumerate(shapes)})
    for parameter in weights.parameters.values():
        parameter.grad = torch.randn(parameter.shape)
    gradients = torch.cat([parameter.grad.flatten() for parameter in weights.parameters.values()])
    weights.join_gradients()
    norm = torch.nn.utils.get_total_norm([weights.gradient_norms()])
    torch.testing.assert_close(norm.double(), gradients.double().norm(), rtol=1e-6, atol=0)
