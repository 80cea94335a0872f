"""The kernels of a stack compile for a GPU that is not there, by the ptxas that Triton brings."""

import subprocess
import sys

import pytest

CODE = """
import torch
from benchmarks.compile_kernels import SHARED_LIMIT, Compiler
from dmd.model.transformer import TransformerStack

stack = TransformerStack(50, 10, 1, queries=(46, 46), keys=(46, 46), attn_dropout=[0.3, 0.0], relu_dropout=0.0,
                         res_dropout=0.0, embed_dropout=0.0, last_step={last}, fused=True)
x = torch.randn(16, 46, 50)
with Compiler(90) as compiler, torch.autocast("cpu", torch.bfloat16):
    outs = stack([x, x], [x, x])
    sum(out.sum() for out in outs).backward()
rows = compiler.rows.values()
assert {{"residual_mlp", "mlp_weights", "projection_weights"}} < {{row["kernel"] for row in rows}}
assert max(row["shared_bytes"] for row in rows) <= SHARED_LIMIT[90]
assert max(row["spill_bytes"] for row in rows) == 0, [(row["kernel"], row["spill_bytes"]) for row in rows]
assert "wgmma" in " ".join(row["matrix_instructions"] for row in rows)
"""


@pytest.mark.parametrize("last", [False, True])
def test_a_stack_compiles_for_hopper(last):
    command = [sys.executable, "-W", "ignore", "-c", CODE.format(last=last)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
