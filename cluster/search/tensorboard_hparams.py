"""What TensorBoard's HParams page shows of a search: the keys that vary, and the validation, of all trials.

Each trial's own event file holds its whole config and, at its last step, its best validation.
"""

from collections.abc import Sequence
from pathlib import Path

from google.protobuf.struct_pb2 import ListValue, Value
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, NULL_TENSOR, PLUGIN_DATA_VERSION, PLUGIN_NAME
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.writer import FileWriter

from cluster.search.space import Parameter
from dmd.config import Config
from dmd.config.loading import config_to_dict
from dmd.metrics import METRICS, Metric, Scoring, in_view, loss_title
from dmd.training.logging.hyperparameters import BEST, DESCRIPTION_SUFFIX, hyperparameter, hyperparameters


def describe_search(parameters: Sequence[Parameter], config: Config, scoring: Scoring, folder: Path) -> None:
    """Write what varies, once, into an event file in a directory above the runs.

    It is the only description: TensorBoard's loader takes one of those that it finds, in no certain order, and so runs
    below such a file write none (`dmd.training.logging.recorder`). The metrics are those of each run's best checkpoint.
    """
    if any(folder.glob(f"events.out.tfevents.*{DESCRIPTION_SUFFIX}")):
        return
    folder.mkdir(parents=True, exist_ok=True)
    names = in_view("hparams", [row.name for row in scoring.rows() if not row.is_loss])
    shown = {"loss": f"best valid {loss_title(config.model.task)}"}
    shown |= {name: f"valid {METRICS[name].title}{_unit(METRICS[name])}" for name in names}
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"{BEST}/{name}"), display_name=title)
        for name, title in shown.items()
    ]
    experiment = api_pb2.Experiment(hparam_infos=[_info(p) for p in parameters], metric_infos=metrics)
    content = HParamsPluginData(experiment=experiment, version=PLUGIN_DATA_VERSION).SerializeToString()
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content)
    entry = Summary.Value(tag=EXPERIMENT_TAG, metadata=SummaryMetadata(plugin_data=plugin), tensor=NULL_TENSOR)
    writer = FileWriter(str(folder), filename_suffix=DESCRIPTION_SUFFIX)
    writer.add_summary(Summary(value=[entry]))
    writer.close()


def _unit(metric: Metric) -> str:
    """What TensorBoard's numbers are, where tables have per cent."""
    return " (share)" if metric.unit == "%" else ""


def describe_cells(configs: Sequence[Config], seeds: Sequence[int], scoring: Scoring, folder: Path) -> None:
    """The same of configs over seeds: what varies are the seed, and the keys in which the configs differ."""
    flat = [hyperparameters(config_to_dict(config)) for config in configs]
    choices = {key: tuple(dict.fromkeys(config[key] for config in flat)) for key in flat[0] if key != "train.seed"}
    parameters = [Parameter(key=key, kind="choice", choices=of) for key, of in choices.items() if len(of) > 1]
    parameters.append(Parameter(key="train.seed", kind="choice", choices=tuple(seeds)))
    describe_search(parameters, configs[0], scoring, folder)


def _info(parameter: Parameter) -> api_pb2.HParamInfo:
    """A key with its range or its choices."""
    info = api_pb2.HParamInfo(name=parameter.key, display_name=parameter.key.rpartition(".")[2], differs=True)
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
    plain = hyperparameter(choice)
    return Value(string_value=plain) if isinstance(plain, str) else Value(number_value=plain)
