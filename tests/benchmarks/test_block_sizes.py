"""Block sizes by measurement: what is tried, and what of a visit's rows reaches the table that trainings read."""

import csv

import pytest

from benchmarks.block_sizes import LAUNCHES, LEAST_GAIN, NEAR, candidates, chosen, merge
from benchmarks.tables import write_rows
from dmd.kernels.common.block_sizes import attention_sizes, row_sizes
from dmd.kernels.common.measured_sizes import (
    ATTENTION_KERNELS,
    COLUMNS,
    ROW_KERNELS,
    Place,
    read_table,
)
from tests.dmd.kernels.forms import TOLERANCE
from tests.dmd.kernels.without_card import without_card

PLAIN = {"rows": "", "keys": "", "pack": ""}
RULE = {
    **dict.fromkeys(COLUMNS, ""),
    "capability": "90",
    "kernel": "residual_mlp",
    "width": "64",
    "bits": "16",
    "M": "64",
    "CHUNK": "64",
    "num_warps": "8",
    "num_stages": "2",
    "shared_bytes": "1024",
    "card": "H100",
    "rule": "True",
    "microseconds": "100.0",
    "error": "0.0e+00",
    "failed": "",
}


def candidate(microseconds: float | str, rows: int, error: str = "1.0e-03", **more: str) -> dict[str, str]:
    return {**RULE, "rule": "False", "microseconds": str(microseconds), "M": str(rows), "error": error, **more}


def test_every_kernel_is_tried_and_no_other():
    assert {launches.kernel for launches in LAUNCHES} == {*ROW_KERNELS, *ATTENTION_KERNELS}
    assert len(set(LAUNCHES)) == len(LAUNCHES)


def test_the_rule_is_the_first_candidate_and_none_is_tried_twice():
    for dim in (50, 100, 256):
        for half in (True, False):
            rule = row_sizes("residual_mlp", dim, half=half)
            tried = candidates("residual_mlp", rule, PLAIN)
            assert tried[0] == rule
            assert len({tuple(sizes.items()) for sizes in tried}) == len(tried) > 3
            assert min(min(sizes.values()) for sizes in tried) >= 1
            assert min(min(sizes["M"], sizes["CHUNK"]) for sizes in tried) == 16 or dim == 50


def test_a_tile_is_no_larger_than_its_sequences():
    rule = attention_sizes(5, 20, 500, heads=10, half=True)
    tried = candidates("forward", rule, {"rows": 32, "keys": 64, "pack": 1})
    assert {(sizes["BLOCK_M"], sizes["BLOCK_N"]) for sizes in tried} == {(32, 64), (16, 32), (16, 64), (32, 32)}
    rule = attention_sizes(5, 20, 46, heads=10, half=True)
    tried = candidates("forward", rule, {"rows": 32, "keys": 64, "pack": 2})
    assert {(sizes["BLOCK_M"], sizes["BLOCK_N"]) for sizes in tried} == {
        (32, 16),
        (16, 16),
        (64, 16),
        (32, 32),
        (64, 32),
    }


def test_the_fastest_that_is_near_the_rule_is_chosen():
    rows = [RULE, candidate(90, 32), candidate(80, 128), candidate(70, 16, error=f"{2 * NEAR[16]}")]
    (row,) = chosen(rows)
    assert (row["M"], row["kernel"], row["capability"]) == ("128", "residual_mlp", "90")


@pytest.mark.parametrize(
    "rows",
    [
        [RULE, candidate(100 * (1 - LEAST_GAIN) + 1, 32)],
        [RULE, candidate(50, 32, error="nan")],
        [RULE, candidate("", 32, error="", failed="it needs too much")],
        [candidate(50, 32)],
    ],
    ids=["too little is gained", "far from the rule", "it failed", "the rule was not measured"],
)
def test_else_the_rule_stays(rows):
    assert chosen(rows) == []


def test_rows_of_a_visit_replace_those_about_the_same_launches_alone(tmp_path):
    table, visit = tmp_path / "table.csv", tmp_path / "visit.csv"
    old = {name: candidate(1, 16)[name] for name in COLUMNS}
    write_rows(table, [old, {**old, "width": "128"}, {**old, "capability": "80"}], COLUMNS)
    write_rows(visit, [RULE, candidate(50, 128), {**RULE, "width": "128"}])
    assert "1 rows of 2 kernels and shapes, 1 others" in merge(visit, table)
    found = read_table(table)
    assert {place: sizes["M"] for place, sizes in found.items()} == {
        Place(90, "residual_mlp", 64, 16): 128,
        Place(80, "residual_mlp", 64, 16): 16,
    }


def test_a_table_without_rows_keeps_its_columns(tmp_path):
    table, visit = tmp_path / "table.csv", tmp_path / "visit.csv"
    write_rows(table, [], COLUMNS)
    write_rows(visit, [RULE])
    merge(visit, table)
    with table.open(newline="") as stream:
        assert list(csv.reader(stream)) == [list(COLUMNS)]


def test_near_is_what_the_tests_of_the_kernels_allow():
    assert {16: TOLERANCE["bfloat16"], 32: TOLERANCE["float32"]} == NEAR


def check_largest_candidates_fit(stage: str, kernels: tuple[str, ...]) -> None:
    """Those with the largest blocks and most stages need most shared memory."""
    from benchmarks.offline_driver import offline

    # isort: split
    import torch

    from benchmarks.block_sizes_calls import Calls

    with offline(90) as driver:
        for kernel in kernels:
            calls = Calls(stage, precision="bf16", device=torch.device("cpu"))
            place, rule = calls.place(kernel)
            for name in ("M", "CHUNK", "num_stages") if kernel in ROW_KERNELS else ("num_warps",):
                sizes = max(candidates(kernel, rule, place), key=lambda sizes, name=name: sizes[name])
                calls.run(kernel, sizes)
                shared = calls.shared_bytes(kernel, sizes)
                assert 0 < int(shared) <= driver.limit, (kernel, sizes, shared)


@pytest.mark.slow
def test_the_largest_candidates_compile_for_hopper_and_fit():
    without_card(__name__, "check_largest_candidates_fit", "memory", ("residual_mlp", "project"))
    without_card(__name__, "check_largest_candidates_fit", "crossmodal", ("forward",))
