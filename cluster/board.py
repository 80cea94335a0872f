"""What TensorBoard's HParams page shows of a search: the keys that vary, and the validation, of all trials.

Each trial's own event file holds its whole config; left alone the page opens with whichever keys come first in it.
"""

from pathlib import Path

from google.protobuf.struct_pb2 import ListValue, Value
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, NULL_TENSOR, PLUGIN_DATA_VERSION, PLUGIN_NAME
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.writer import FileWriter

from cluster.space import Parameter, Space

METRICS = {
    "valid/loss": "valid loss, last epoch", "final/valid/loss": "valid loss, best (finished)",
    "valid/acc2_non0": "valid Acc2 Non0", "valid/acc7": "valid Acc7", "valid/corr": "valid Corr",
}  # fmt: skip


def describe_search(space: Space, trials: Path) -> None:
    """Write what varies, once, into an event file beside the trials' directories."""
    if any(trials.glob("events.out.tfevents.*")):
        return
    trials.mkdir(parents=True, exist_ok=True)
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=shown) for tag, shown in METRICS.items()
    ]
    experiment = api_pb2.Experiment(hparam_infos=[_info(p) for p in space.parameters], metric_infos=metrics)
    content = HParamsPluginData(experiment=experiment, version=PLUGIN_DATA_VERSION).SerializeToString()
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content)
    entry = Summary.Value(tag=EXPERIMENT_TAG, metadata=SummaryMetadata(plugin_data=plugin), tensor=NULL_TENSOR)
    writer = FileWriter(str(trials))
    writer.add_summary(Summary(value=[entry]))
    writer.close()


def _info(parameter: Parameter) -> api_pb2.HParamInfo:
    """A key with its range or its choices."""
    info = api_pb2.HParamInfo(name=parameter.key, display_name=parameter.key.rpartition(".")[2])
    if parameter.kind != "choice":
        info.type = api_pb2.DATA_TYPE_FLOAT64
        info.domain_interval.min_value, info.domain_interval.max_value = parameter.low, parameter.high
        return info
    kinds = {type(choice) for choice in parameter.choices}
    if kinds == {bool}:
        info.type = api_pb2.DATA_TYPE_BOOL
    else:
        info.type = api_pb2.DATA_TYPE_FLOAT64 if kinds <= {int, float} else api_pb2.DATA_TYPE_STRING
    info.domain_discrete.CopyFrom(ListValue(values=[_value(choice) for choice in parameter.choices]))
    return info


def _value(choice: object) -> Value:
    if isinstance(choice, bool):
        return Value(bool_value=choice)
    return Value(number_value=choice) if isinstance(choice, int | float) else Value(string_value=str(choice))
