"""Subcommands of `dmd` that work on a Ray cluster: tune, experiment, submit; with --address also extract, shard, train,
predict and evaluate.

Ray is imported when a request stands, so that `--help` and mistakes come fast, and never without a cluster.
"""

from dataclasses import replace


def shard(argv: list[str]) -> int:
    """Turn feature files, or synthetic data, into shards with an index."""
    from cluster.sharding.parser import CLUSTER_OPTIONS, parse_shard

    options = parse_shard(argv)
    if options.address is None:
        from cluster.cluster_options import require_address

        require_address(options, CLUSTER_OPTIONS, what="tasks")
        from data_shards.commands import shard_here

        return shard_here(options)
    from cluster.sharding.command import shard_on_cluster

    return shard_on_cluster(options)


def extract(argv: list[str]) -> int:
    """Make features of a folder of videos or sound files, for `dmd shard`."""
    from cluster.extraction.parser import CLUSTER_OPTIONS, parse_extract

    options = parse_extract(argv)
    if options.address is None:
        from cluster.cluster_options import require_address

        require_address(options, CLUSTER_OPTIONS, what="tasks")
        from cluster.extraction.command import extract_here

        return extract_here(options)
    from cluster.extraction.on_cluster import extract_on_cluster

    return extract_on_cluster(options)


def train(argv: list[str]) -> int:
    """Train DMD on shards with DeepSpeed; with --run the same command again continues."""
    from dmd.streams import lasting_streams
    from launch.commands import loading_torch, stop_ends_process, train_by_launcher

    with stop_ends_process(), lasting_streams():
        from cluster.cluster_options import require_address
        from cluster.parsers import TRAIN_OPTIONS, train_parser
        from dmd.config.options import print_config
        from launch.arguments import parse_train
        from launch.made_runs import has_begun, made_run
        from launch.supervision.ending import continued, print_ending

        options = parse_train(train_parser(), argv)
        if options.print_config:
            return print_config(options)
        if options.address is None:
            require_address(options, TRAIN_OPTIONS, what="ranks")
            return train_by_launcher(options)
        with loading_torch():
            from cluster.request import train_request
        request = train_request(options)
        from cluster.experiments.training import run_train

        with made_run(options) as run:
            ending = run_train(replace(request, run=run.absolute()))
            print_ending(continued(ending, run) if has_begun(options) else ending)
        return ending.code


def tune(argv: list[str]) -> int:
    """Search hyperparameters by validation loss on a Ray cluster; the same command again continues."""
    from cluster.parsers import parse_tune
    from dmd.config.options import print_config
    from dmd.extras import require

    options = parse_tune(argv)
    if options.print_config:
        return print_config(options)
    require("ray")
    from cluster.request import tune_request

    request = tune_request(options)
    from cluster.experiments.orchestrate import run_tune

    return run_tune(request)


def experiment(argv: list[str]) -> int:
    """Train a preset, and ablations of it, with several seeds on a Ray cluster; one table of test results."""
    from cluster.parsers import parse_experiment
    from dmd.config.options import print_config
    from dmd.extras import require

    options = parse_experiment(argv)
    if options.print_config:
        return print_config(options)
    require("ray")
    from cluster.request import experiment_request

    request = experiment_request(options)
    from cluster.experiments.orchestrate import run_experiment

    return run_experiment(request)


def submit(argv: list[str]) -> int:
    """Run a command as a job on a remote cluster, follow its log, look at it or stop it."""
    from cluster.jobs.parser import make_parser
    from dmd.extras import require

    options = make_parser().parse_args(argv)
    require("ray")
    from cluster.jobs.submit import submit as submit_job

    return submit_job(options)


def predict(argv: list[str]) -> int:
    """Predict clips, shards, features or a table: on the terminal, into a file or a directory of parts."""
    from cluster.parsers import predict_parser
    from cluster.prediction.request import pool_request
    from dmd.commands import parts_order, predict_here

    options = predict_parser().parse_args(argv)
    request = pool_request(options)
    if request is None:
        return predict_here(options)
    order = parts_order(options)
    from cluster.prediction.predict import run_predict

    return run_predict(order, request)


def evaluate(argv: list[str]) -> int:
    """Print all metrics of a trained run, or of the ensemble of several, on a split, for each head."""
    from cluster.parsers import evaluate_parser
    from cluster.prediction.request import evaluation_request
    from dmd.commands import evaluate_here

    options = evaluate_parser().parse_args(argv)
    request = evaluation_request(options)
    if request is None:
        return evaluate_here(argv, options)
    from cluster.prediction.evaluate import Question, run_evaluate
    from dmd.model.text_base import base_name

    encoder = None if options.text_encoder is None else base_name(options.text_encoder)
    question = Question(
        runs=tuple(options.runs), data=options.data, split=options.split, step=options.step, text_encoder=encoder
    )
    return run_evaluate(question, write_to=options.json, request=request)
