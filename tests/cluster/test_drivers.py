"""The processes of a trial that only wait load as little as they can: Ray starts them anew for each trial."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.experiments.seed_runs import make_cells
from cluster.ray_runtime.process_group import RankEnvironment, require_gpu
from cluster.ray_runtime.trial import Trainer
from dmd.config import Config


def test_a_driver_and_what_it_gets_load_no_torch(tmp_path):
    (cell,) = make_cells({"preset": Config()}, [1], Path("out"))
    (tmp_path / "cell").write_bytes(pickle.dumps((cell.to_drive(), RankEnvironment(run=Path("out")))))
    code = f"import sys, pickle, cluster.experiments.drivers; pickle.load(open({str(tmp_path / 'cell')!r}, 'rb'))"
    code += "; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_ray_train_starts_no_manager_of_data_sets(tmp_path):
    def has_one(kind: type[DataParallelTrainer]) -> bool:
        trainer = kind(
            lambda: None,
            backend_config=RankEnvironment(run=tmp_path),
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(name="none", storage_path=str(tmp_path)),
        )
        return any(isinstance(callback, DatasetsCallback) for callback in trainer._create_default_callbacks())

    assert has_one(DataParallelTrainer)
    assert not has_one(Trainer)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_gpu_that_torch_cannot_use_is_an_error_and_not_a_training_on_the_cpu():
    with pytest.raises(ValueError, match=r"offers a GPU to Ray, and torch .* finds no CUDA device there; install"):
        require_gpu()
