"""Subcommands of `dmd` that train on a Ray cluster: tune, experiment, submit.

Ray is imported when a request stands, so that `--help` and mistakes come fast.
"""


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
    """Run tune or experiment as a job on a remote cluster, follow its log, look at it or stop it."""
    from cluster.jobs.submit import submit as submit_job

    return submit_job(argv)
