"""Measured block sizes: a row holds for its card and its launches alone, and one that cannot be right names itself."""

import csv
import re
from pathlib import Path

import pytest

from dmd.kernels.common import measured_sizes
from dmd.kernels.common.block_sizes import attention_sizes, row_sizes
from dmd.kernels.common.measured_sizes import (
    COLUMNS,
    TABLE,
    attention_sizes_on,
    read_table,
    row_sizes_on,
)
from tests.dmd.kernels.without_card import without_card

MLP = {
    "capability": 90,
    "kernel": "weight_shares",
    "width": 64,
    "bits": 16,
    "M": 128,
    "CHUNK": 32,
    "num_warps": 4,
    "num_stages": 3,
    "shared_bytes": 65536,
    "card": "a card, measured",
    "commit": "abc",
}
FORWARD = {
    "capability": 90,
    "kernel": "forward",
    "width": 16,
    "bits": 16,
    "rows": 64,
    "keys": 64,
    "pack": 2,
    "BLOCK_M": 16,
    "BLOCK_N": 32,
    "num_warps": 1,
    "num_stages": 2,
    "shared_bytes": 8192,
}


def write_table(path: Path, *rows: dict) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def use_table(path: Path) -> None:
    """Let this process take its sizes from another table."""
    measured_sizes.TABLE = path
    row_sizes_on.cache_clear()
    attention_sizes_on.cache_clear()


@pytest.fixture
def table(tmp_path):
    """A table with the two rows."""
    use_table(write_table(tmp_path / "sizes.csv", MLP, FORWARD))
    yield
    use_table(TABLE)


def test_a_row_holds_for_its_card_kernel_width_and_precision_alone(table):
    rule = row_sizes("weight_shares", 50, half=True)
    measured = {"WIDTH": 64, "M": 128, "CHUNK": 32, "num_warps": 4, "num_stages": 3}
    assert measured != rule
    assert row_sizes_on(90, "weight_shares", 50, half=True) == measured
    for capability in (None, 86, 100, 121):
        assert row_sizes_on(capability, "weight_shares", 50, half=True) == rule
    assert row_sizes_on(90, "weight_shares", 50, half=False) == row_sizes("weight_shares", 50, half=False)
    assert row_sizes_on(90, "weight_shares", 100, half=True) == row_sizes("weight_shares", 100, half=True)
    assert row_sizes_on(90, "project", 50, half=True) == row_sizes("project", 50, half=True)


def test_a_row_of_the_attention_holds_for_lengths_that_are_padded_to_its_own(table):
    rule = attention_sizes(5, 46, 50, heads=10, half=True)
    measured = {"PACK": 2, "WIDTH": 16, "ALIGN": 8, "BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 1, "num_stages": 2}
    assert measured != rule
    for head in (5, 8):
        assert attention_sizes_on(90, "forward", head, 46, 50, heads=10, half=True) == measured
    for capability, kernel, head, rows, keys in (
        (90, "backward_key", 5, 46, 50),
        (86, "forward", 5, 46, 50),
        (90, "forward", 10, 46, 50),
        (90, "forward", 5, 1, 50),
        (90, "forward", 5, 46, 371),
    ):
        rule = attention_sizes(head, rows, keys, heads=10, half=True)
        assert attention_sizes_on(capability, kernel, head, rows, keys, heads=10, half=True) == rule != measured


def check_launches_take_the_row_of_the_card_that_is_compiled_for(path: str) -> None:
    """From the driver's target to the constants of a launch."""
    from benchmarks.offline_driver import offline

    # isort: split
    import torch

    from benchmarks.block_sizes_calls import Calls

    use_table(Path(path))
    found = {}
    for capability in (90, 86):
        with offline(capability, noting=False):
            calls = Calls("crossmodal", precision="bf16", device=torch.device("cpu"), tiny=True)
            attention, rows = calls.layer.attention, calls.activations
            found[capability] = (
                calls.layer.sizes("weight_shares")["M"],
                attention.sizes("forward", rows.query.repeat(1, 1, 2, 1), rows.key.repeat(1, 1, 2, 1))["BLOCK_M"],
            )
    use_table(TABLE)
    assert found == {90: (128, 16), 86: (64, 32)}


@pytest.mark.slow
def test_launches_take_the_row_of_the_card_that_is_compiled_for(tmp_path):
    path = write_table(tmp_path / "sizes.csv", MLP, FORWARD)
    without_card(__name__, "check_launches_take_the_row_of_the_card_that_is_compiled_for", str(path))


def test_the_table_of_this_version_can_be_read():
    with TABLE.open() as stream:
        assert len(read_table(TABLE)) == len(stream.readlines()) - 1


@pytest.mark.parametrize(
    ("row", "change", "told"),
    [
        (MLP, {"kernel": "mlp"}, "kernel is 'mlp'; known: project"),
        (MLP, {"capability": 75}, "capability is 75; known: 80"),
        (MLP, {"bits": 8}, "bits is 8; known: 16 32"),
        (MLP, {"width": 50}, "width is 50; it must be a power of two"),
        (MLP, {"width": 512}, "width is '512'; at least 16 and at most 256"),
        (MLP, {"M": 48}, "M is 48; it must be a power of two"),
        (MLP, {"CHUNK": 8}, "CHUNK is '8'; at least 16"),
        (MLP, {"M": ""}, "M is ''; at least 16"),
        (MLP, {"M": "64.0"}, "M is '64.0'"),
        (MLP, {"BLOCK_M": 64}, "BLOCK_M is '64'; weight_shares has none"),
        (MLP, {"num_warps": 3}, "num_warps is 3; it must be a power of two"),
        (MLP, {"num_stages": 0}, "num_stages is '0'; at least 1"),
        (MLP, {"shared_bytes": 232449}, "shared_bytes is '232449'; at least 0 and at most 232448"),
        (MLP, {"capability": 86, "shared_bytes": 101377}, "shared_bytes is '101377'; at least 0 and at most 101376"),
        (FORWARD, {"rows": ""}, "rows is ''"),
        (FORWARD, {"pack": 3}, "pack is 3; it must be a power of two"),
        (FORWARD, {"BLOCK_M": 256}, "BLOCK_M is '256'; at least 16 and at most 128"),
        (MLP, {"pack": 1}, "pack is '1'; weight_shares has none"),
        (FORWARD, {"BLOCK_N": 128}, "BLOCK_N is '128'; at least 16 and at most 64"),
        (FORWARD, {"M": 64}, "M is '64'; forward has none"),
    ],
)
def test_a_row_that_cannot_be_right_names_itself(tmp_path, row, change, told):
    wrong = {**row, **change}
    path = write_table(tmp_path / "sizes.csv", {**MLP, "width": 128}, wrong)
    begin = f"{path}, line 3 ({wrong['capability']},{wrong['kernel']},"
    with pytest.raises(ValueError, match=f"^{re.escape(begin)}.*{re.escape(told)}.*; correct it or take it out$"):
        read_table(path)


def test_two_rows_about_the_same_launches_are_rejected(tmp_path):
    path = write_table(tmp_path / "sizes.csv", MLP, FORWARD, {**MLP, "M": 64})
    with pytest.raises(ValueError, match=r"line 4 .*an earlier row is about the same launches"):
        read_table(path)


def test_other_columns_are_rejected(tmp_path):
    path = tmp_path / "sizes.csv"
    path.write_text("capability,kernel\n90,project\n")
    with pytest.raises(ValueError, match="its columns are"):
        read_table(path)
