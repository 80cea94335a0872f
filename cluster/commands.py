"""Subcommands of `dmd` that train on a Ray cluster: tune, experiment, submit.

Ray and torch are imported when a command runs, so that `dmd --help` stays fast.
"""


def tune(argv: list[str]) -> int:
    """Search hyperparameters by validation loss on a Ray cluster; the same command again continues."""
    from cluster.parsers import tune_parser

    options = tune_parser().parse_intermixed_args(argv)
    from cluster.experiments.orchestrate import run_tune

    return run_tune(options)


def experiment(argv: list[str]) -> int:
    """Train a preset, and ablations of it, with several seeds on a Ray cluster; one table of test results."""
    from cluster.parsers import experiment_parser

    options = experiment_parser().parse_intermixed_args(argv)
    from cluster.experiments.orchestrate import run_experiment

    return run_experiment(options)


def submit(argv: list[str]) -> int:
    """Run tune or experiment as a job on a remote cluster, follow its log, look at it or stop it."""
    from cluster.jobs.submit import submit as submit_job

    return submit_job(argv)
