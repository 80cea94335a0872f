"""The rule that decides how a model runs on a device."""

import pytest
import torch

from dmd.kernels.backend import choose_execution, float32_products
from dmd.kernels.common.cards import Card

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RTX_3090 = Card(name="NVIDIA GeForce RTX 3090", capability=(8, 6))
T4 = Card(name="Tesla T4", capability=(7, 5))


def test_ampere_runs_triton_in_bfloat16():
    execution = choose_execution(CUDA, card=RTX_3090)
    assert execution.kernels == "fused (Triton on CUDA)"
    assert execution.autocast is torch.bfloat16


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_float32_is_asked_for(precision):
    execution = choose_execution(CUDA, card=RTX_3090, precision=precision)
    assert execution.precision == precision
    assert execution.autocast is None


def test_an_older_card_runs_plain_torch_in_float32():
    execution = choose_execution(CUDA, card=T4)
    assert execution.kernels == "plain (Tesla T4 (compute capability 7.5) is older than compute capability 8.0)"
    assert execution.precision == "fp32"


@pytest.mark.parametrize("wish", [{"kernels": "fused"}, {"precision": "bf16"}, {"precision": "tf32"}])
def test_a_wish_that_an_older_card_cannot_meet(wish):
    ((key, value),) = wish.items()
    with pytest.raises(ValueError, match=rf"train\.{key} is '{value}', but Tesla T4 .*7\.5.*; set train\.{key}="):
        choose_execution(CUDA, card=T4, **wish)
    assert choose_execution(CUDA, card=T4, binding=False, **wish) == choose_execution(CUDA, card=T4)


def test_the_cpu_has_no_triton():
    assert choose_execution(CPU).kernels == "plain (there is no Triton for cpu devices)"
    assert choose_execution(CPU, precision="bf16").autocast is torch.bfloat16
    with pytest.raises(ValueError, match=r"train\.kernels is 'fused', but there is no Triton for cpu devices"):
        choose_execution(CPU, kernels="fused")
    with pytest.raises(ValueError, match=r"train\.precision is 'tf32', but cpu devices have no TF32"):
        choose_execution(CPU, precision="tf32")


def test_plain_is_taken_at_its_word():
    assert choose_execution(CUDA, card=RTX_3090, kernels="plain").kernels == "plain (asked for)"


def test_these_tests_run_without_tf32():
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_float32_products_are_set_for_a_while():
    before = torch.backends.cudnn.allow_tf32
    with float32_products(tf32=not before):
        assert torch.backends.cudnn.allow_tf32 is not before
        assert torch.backends.cuda.matmul.allow_tf32 is not before
    assert torch.backends.cudnn.allow_tf32 is before
