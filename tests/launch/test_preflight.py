"""What a training says before it starts."""

import pytest

from data_shards.sources.synthetic import SyntheticSource
from data_shards.writing.build import build
from launch.trainer.preflight import unread_overrides


@pytest.mark.parametrize("kind, found", [("features", ["text.learning_rate=3"]), ("tokens", [])])
def test_overrides_of_an_encoder_that_is_not_there_are_named(tmp_path, kind, found):
    info = build(SyntheticSource(samples=20, steps=20, text_dim=8, text_kind=kind), tmp_path / "shards")
    assert unread_overrides(["text.learning_rate=3", "train.learning_rate=3"], info) == found
