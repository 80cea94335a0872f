"""Subcommands of `dmd` that work on a Ray cluster, always or with --address: shard, train, tune, experiment, submit.

Ray is imported when a request stands, so that `--help` and mistakes come fast, and never without a cluster.
"""


def shard(argv: list[str]) -> int:
    """Turn feature files, or synthetic data, into shards with an index."""
    from cluster.sharding.parser import parse_shard

    options = parse_shard(argv)
    if options.address is None:
        from data_shards.commands import shard_here

        return shard_here(options)
    from cluster.sharding.command import shard_on_cluster

    return shard_on_cluster(options)


def train(argv: list[str]) -> int:
    """Train DMD on shards with DeepSpeed; the same command again continues the run."""
    from launch.commands import stop_ends_process, train_by_launcher

    with stop_ends_process():
        from cluster.parsers import train_parser

        options = train_parser().parse_intermixed_args(argv)
        if options.address is None:
            return train_by_launcher(options)
        from cluster.request import train_request

        request = train_request(options)
        from cluster.experiments.training import run_train

        return run_train(request)


def tune(argv: list[str]) -> int:
    """Search hyperparameters by validation loss on a Ray cluster; the same command again continues."""
    from cluster.request import parse_tune

    request = parse_tune(argv)
    from cluster.experiments.orchestrate import run_tune

    return run_tune(request)


def experiment(argv: list[str]) -> int:
    """Train a preset, and ablations of it, with several seeds on a Ray cluster; one table of test results."""
    from cluster.request import parse_experiment

    request = parse_experiment(argv)
    from cluster.experiments.orchestrate import run_experiment

    return run_experiment(request)


def submit(argv: list[str]) -> int:
    """Run shard, tune or experiment as a job on a remote cluster, follow its log, look at it or stop it."""
    from cluster.jobs.submit import submit as submit_job

    return submit_job(argv)
