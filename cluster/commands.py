"""Subcommands of `dmd` that train, or that need a Ray cluster: train, tune, experiment, submit.

Ray is imported when a request stands, so that `--help` and mistakes come fast; `train` imports it with --address only.
"""


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
    """Run train, tune, experiment or report as a job on a remote cluster, follow its log, look at it or stop it."""
    from cluster.jobs.submit import submit as submit_job

    return submit_job(argv)
