"""Dropout keys: golden values, how they are spread, and what a rank with a part of a ghost batch draws."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dmd.kernels.cpu import CPU as ON_CPU
from dmd.kernels.dropout.keys import DropoutKeys, mix_keys, number_samples, sample_states, site_states
from dmd.kernels.dropout.rng import DropoutRNG, derived_seed
from dmd.kernels.interface import Backend
from dmd.kernels.portable import PORTABLE
from dmd.model import DMD
from tests.dmd.kernels.forms import interpreted
from tests.support.small_system import LENGTHS, MODEL, SIZES

CPU = torch.device("cpu")
SITES = [(number, encoder) for number in range(1, 41) for encoder in range(6)] + [(number,) for number in range(1, 41)]
"""More than the largest model has."""
STEP = number_samples(range(10), range(16))
"""The samples of a published step."""
SIGMAS = 5
GOLDEN_KEYS = [[687270292, 654680518], [662183407, -1697528998], [1320841348, -234225125]]
GOLDEN_MASK = ["..x..x...", "x...x.x.x", "xx..x.x.x", "xx..xxx.."]
"""x: kept."""


def keys_of(step: int, seed: int = 1111) -> Tensor:
    """All keys of a step, [sites, samples, 2]."""
    return mix_keys(site_states(SITES), sample_states(derived_seed("dropout", seed, step), STEP))


def by_python(seed: int, number: int, encoder: int, ghost: int, place: int) -> list[int]:
    """A key in integers of any size: both words, as int32."""
    n = (number << 50) | (encoder << 40) | (ghost << 16) | place
    x = (seed + n * 0x9E3779B97F4A7C15) % 2**64
    for _ in range(2):
        x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93 % 2**64
    x ^= x >> 32
    return [(word + 2**31) % 2**32 - 2**31 for word in (x % 2**32, x >> 32)]


def test_golden_keys():
    """Masks of a training are a function of its seed, on every machine and in every version from this one on."""
    rng = DropoutRNG(seed=1111, step=7, samples=number_samples([0, 9], [0, 15]), device=CPU)
    table = rng.table([(1,), (2, 0), (75, 5)])
    seed = derived_seed("dropout", 1111, 7)
    sites, samples = ((1, 0), (2, 1), (75, 6)), ((0, 0), (0, 15), (9, 0), (9, 15))
    assert table.tolist() == [[by_python(seed, *site, *sample) for sample in samples] for site in sites]
    assert table[:, 0].tolist() == GOLDEN_KEYS


def test_golden_mask():
    rng = DropoutRNG(seed=1111, step=7, samples=number_samples([3], [0, 1]), device=CPU)
    mask = rng.scaled_keep_mask((2, 2, 9), 0.5, batch_dim=1, dtype=torch.float32)
    assert ["".join("x" if kept else "." for kept in row) for row in mask.flatten(0, 1).tolist()] == GOLDEN_MASK


def test_no_two_keys_are_equal():
    """Inside a step none can be; over some steps none is, and words collide as often as random ones."""
    tables = torch.stack([keys_of(step) for step in range(8)]).flatten(0, 2)
    assert len(tables.unique(dim=0)) == len(tables)
    expected = len(tables) ** 2 / 2**33
    for word in tables.unbind(-1):
        repeated = len(word) - len(word.unique())
        assert abs(repeated - expected) < SIGMAS * expected**0.5


@pytest.mark.parametrize("neighbour", ["site", "encoder", "ghost", "place", "step", "seed"])
def test_neighbours_are_independent(neighbour):
    """Each bit of a key is 1, and differs from the same bit of a neighbour's key, half of the time."""
    whole = keys_of(3)
    pairs = {
        "site": (whole[240:279], whole[241:280]),
        "encoder": (whole[:239], whole[1:240]),
        "ghost": (whole[:, :144], whole[:, 16:]),
        "place": (whole[:, :159], whole[:, 1:]),
        "step": (whole, keys_of(4)),
        "seed": (whole, keys_of(3, 1112)),
    }
    first, second = pairs[neighbour]
    for bits in (first, first ^ second):
        count = bits[..., 0].numel()
        share = torch.stack([((bits >> bit) & 1).double().mean((0, 1)) for bit in range(32)])  # [32, 2]
        assert float((share - 0.5).abs().max()) < SIGMAS * 0.5 / count**0.5


def test_masks_of_neighbours_are_independent():
    """Neighbouring samples, call sites and elements drop together as often as chance has it."""
    rng = DropoutRNG(seed=1, step=0, samples=STEP, device=CPU)
    first, second = (
        rng.scaled_keep_mask((160, 2000), 0.5, batch_dim=0, dtype=torch.float64) - 1 for _ in range(2)
    )  # -1 or 1
    for product in (first * second, first[1:] * first[:-1], first[:, 1:] * first[:, :-1], first[:, 2:] * first[:, :-2]):
        assert abs(float(product.mean())) < SIGMAS / product.numel() ** 0.5
    assert float(first.mean(1).abs().max()) < SIGMAS / 2000**0.5


@pytest.mark.parametrize("backend", [ON_CPU, PORTABLE])
def test_a_part_of_a_ghost_batch_draws_its_part_of_the_masks(backend):
    """Every output of a pass with every dropout."""
    check_parts(backend)


@torch.no_grad()
def check_parts(backend: Backend) -> None:
    """Samples 1 and 2 of the second ghost batch of two, of three each."""
    torch.manual_seed(0)
    dtype = torch.float32 if backend.name == "fused" else torch.float64
    model = DMD(MODEL, SIZES, LENGTHS, backend=backend).to(dtype)
    batch = [torch.randn(6, LENGTHS[m], SIZES[m], dtype=dtype) for m in SIZES]

    def heads(rows: slice, samples: Tensor) -> Tensor:
        rng = DropoutRNG(seed=1, step=2, samples=samples, device=CPU)
        output = model(*(part[rows] for part in batch), rng)
        return torch.stack(list(output.predictions.values()), 1)

    whole = heads(slice(6), number_samples([3, 8], range(3)))
    part = heads(slice(4, 6), number_samples([8], [1, 2]))
    assert float((heads(slice(4, 6), number_samples([8], [0, 1])) - part).abs().max()) > 1e-2
    torch.testing.assert_close(part, whole[4:6], rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


def check_parts_fused(_: str) -> None:
    from dmd.kernels.triton_backend import TRITON

    check_parts(TRITON)


def test_triton_kernels_draw_the_part_of_a_ghost_batch():
    interpreted(__name__, "check_parts_fused")


def test_a_table_keeps_its_place_and_is_filled_anew_each_time():
    """What a captured graph reads and writes: the states of the samples, from which it fills the same memory."""
    keys = DropoutKeys()
    addresses, seen = set(), []
    for step in range(4):
        source = SimpleNamespace(states=sample_states(step, STEP), device=CPU)
        keys.start(source)
        for again in range(2 if step else 1):
            if again:
                keys.restart()
            found = [keys.take([(1,), (2, 0)]), keys.take([(3,)])]
            assert torch.cat(found).equal(mix_keys(site_states([(1,), (2, 0), (3,)]), source.states))
        if step:
            addresses.add(found[0].data_ptr())
            seen.append(found[0].clone())
    assert len(addresses) == 1
    assert not seen[0].equal(seen[1])
