"""One rank of `benchmarks.encoder_memory`: builds a training, makes steps, and prints what memory it took at most."""

import argparse
import json
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist

from dmd.config.loading import load_config
from dmd.data.synthetic import random_batch
from dmd.model.text import build_text_encoder
from dmd.system.system import TrainingSystem
from dmd.training.step import make_plan, train_step
from launch.trainer.engine import DeepSpeedEngine, join_process_group
from launch.trainer.peak_memory import peak_bytes, reset_peak

SIZES = {
    "110 M": {"model_type": "bert"},
    "350 M": {
        "model_type": "bert",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}
"""BERT-base and BERT-large, with random weights."""
STEPS = 2
"""The first makes Adam's moments."""


def main() -> None:
    """Build, make steps, print a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    device = join_process_group(timedelta(minutes=10))
    torch.set_num_threads(1)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    settings = [f"train.ghost_batch_size={options.samples}", f"train.ghost_batches_per_step={ranks}"]
    config = load_config(
        "mosi-aligned", ["model.task=regression", *settings, "train.ghost_batches_per_forward=1", *options.overrides]
    )
    info = SimpleNamespace(
        dims={"text": 0, "audio": 5, "vision": 20},
        lengths=dict.fromkeys(("text", "audio", "vision"), options.length),
        text_kind="tokens",
        vocab_size=30522,
    )
    reset_peak()
    imported = peak_bytes()
    torch.manual_seed(0)
    encoder = build_text_encoder(SIZES[options.size], frozen=False, lora=config.text.lora)
    if config.text.gradient_checkpointing:
        encoder.checkpoint_gradients()
    system = TrainingSystem(config, info, encoder, device)  # type: ignore[arg-type]
    plan = make_plan(config, options.samples * ranks, ranks)
    engine = DeepSpeedEngine(system, config, plan, device)
    built = peak_bytes()
    reset_peak()
    system.train()
    batches = [random_batch(info, 1, options.samples)]  # type: ignore[arg-type]
    for step in range(STEPS):
        train_step(engine, batches, config, plan, step=step, step_in_epoch=0)
    found = {"building": built - imported, "steps": peak_bytes() - imported}
    sizes = {"parameters": engine.sizes.parameters, "trained": engine.sizes.trained_bytes // 4}
    print(json.dumps({"rank": rank, **found, **sizes}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
