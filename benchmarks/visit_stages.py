"""The stages of a visit to a GPU machine: what each runs there, and what stands for it where there is no GPU."""

from dataclasses import dataclass

PYTEST = "{python} -m pytest -p benchmarks.visit_pytest -q --timeout-method=thread -o cache_dir={results}/pytest_cache"
LARGEST = "bfloat16 and (LARGE or True)"
"""Kernel tests that take longest, as an expression for `pytest -k`; full-size attention has `True` in its id."""
MEMCHECK = "compute-sanitizer --tool memcheck --target-processes all --error-exitcode 9"


TRAINING = "{python} -m benchmarks.visit_training --device {device} --scratch {scratch} --results {results}"
COMMANDS = "{python} -m benchmarks.visit_commands --scratch {scratch} --results {results}"
SMOKE = "{python} -m benchmarks.smoke --device {device} --out {results}/smoke.csv"
NONE_CHOSEN = "[ $? -eq 5 ]"
"""After pytest: there was no test to run."""
EAGER = "--forms fused plain batched reference graph"
"""The graph last: a capture that fails may leave torch's allocator and generator unfit for what comes after it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage; commands are shell lines with {python}, {results} (comes back), {scratch} (does not) and {device}."""

    name: str
    limit: int
    """Seconds after which it is cut off."""
    least: int
    """Seconds of budget without which it is not started."""
    cuda: str
    cpu: str
    """The same on the CPU or in Triton's interpreter, with tiny sizes; its figures are of no use."""


def _kernel_tests(name: str, chosen: str, *, processes: int, each: int, limit: int, least: int) -> Stage:
    options = f"--junitxml={{results}}/{name}.xml --durations=15"
    command = f"OMP_NUM_THREADS=2 {PYTEST} {options} -n {processes} --timeout={each}"
    return Stage(
        name=name,
        limit=limit,
        least=least,
        cuda=f"{command} tests/dmd/kernels -m gpu -k '{chosen}'",
        # without a device they are collected and skipped: this shows that they import
        cpu=f"OMP_NUM_THREADS=1 {PYTEST} {options} -n 2 --timeout=90 tests/dmd/kernels -m gpu -k '{chosen}'",
    )


def _step(name: str, cases: str, more: str = "", *, limit: int, least: int, tried: str) -> Stage:
    command = f"{{python}} -m benchmarks.step_cuda --device {{device}} --out {{results}}/{name}.csv {more}"
    return Stage(
        name=name,
        limit=limit,
        least=least,
        cuda=f"{command} --cases {cases}",
        cpu=f"{command} --cases {tried} --ghosts 1 --rounds 1 --tiny --least-rounds 1",
    )


def _same(name: str, command: str, *, limit: int, least: int, tiny: str = "--tiny") -> Stage:
    return Stage(name=name, limit=limit, least=least, cuda=command, cpu=f"{command} {tiny}")


STAGES = (
    Stage(
        name="wheels",
        limit=60,
        least=0,
        cuda="{python} -m benchmarks.visit_site {wheels} {site}",
        cpu="{python} -m benchmarks.visit_site {wheels} {site}",
    ),
    _same(
        "device",
        "{python} -m benchmarks.visit_device --device {device} --out {results}/device.csv",
        limit=30,
        least=10,
        tiny="",
    ),
    Stage(
        name="smoke",
        limit=110,
        least=30,
        cuda=f"OMP_NUM_THREADS=4 {SMOKE}",
        cpu=f"{SMOKE} --tiny --limit 300 --cases mosi-aligned:bf16",
    ),
    _kernel_tests("tests", f"not ({LARGEST})", processes=8, each=90, limit=150, least=40),
    _step(
        "step",
        "mosi-aligned mosi-aligned+bert mosi-unaligned",
        EAGER,
        limit=100,
        least=30,
        tried="mosi-aligned mosi-aligned+bert",
    ),
    _step(
        "compiled",
        "mosi-aligned mosi-unaligned",
        "--forms compiled reduce-overhead --limit 70",
        limit=120,
        least=40,
        tried="mosi-aligned",
    ),
    _same(
        "training",
        "{python} -m benchmarks.visit_training --device {device} --scratch {scratch}/alone"
        " --results {results}/alone --only times",
        limit=90,
        least=45,
    ),
    _same(
        "profile",
        "{python} -m benchmarks.kernel_times --device {device} --out {results}/kernel_times.csv",
        limit=60,
        least=20,
        tiny="--tiny --presets mosi-aligned",
    ),
    _same(
        "block-sizes",
        "{python} -m benchmarks.block_sizes --device {device} --out {results}/block_sizes.csv --limit 32",
        limit=40,
        least=20,
        tiny="--tiny --precisions fp32",  # Triton's interpreter computes wrongly in bf16
    ),
    Stage(
        name="host",
        limit=45,
        least=20,
        cuda="{python} -m benchmarks.host_step --device cuda --out {results}/host_step.csv",
        cpu="{python} -m benchmarks.host_step --device cpu --forms graph --steps 5 --out {results}/host_step.csv",
    ),
    _kernel_tests("tests-large", LARGEST, processes=4, each=200, limit=200, least=60),
    _step("mosei", "mosei-aligned mosei-unaligned", EAGER, limit=90, least=45, tried="mosei-aligned"),
    Stage(
        name="sanitizer",
        limit=120,
        least=45,
        cuda=f"PYTORCH_NO_CUDA_MEMORY_CACHING=1 {MEMCHECK} {PYTEST} --timeout=100 tests/dmd/kernels -m gpu"
        " -k 'margin_on_cuda or (stack_on_cuda and SMALL and step)'",
        cpu=f"PYTORCH_NO_CUDA_MEMORY_CACHING=1 {PYTEST} --timeout=100 tests/dmd/kernels -k 'margin_interpreted'",
    ),
    _same(
        "floors", "{python} -m benchmarks.kernels --device {device} --out {results}/kernels.csv", limit=120, least=40
    ),
    _same(
        "launches",
        "{python} -m benchmarks.launches mosi-aligned mosi-unaligned --samples 16 --precisions bf16"
        " --text features --out {results}/launches.csv",
        limit=120,
        least=30,
        tiny="--samples 2 --forms fused",
    ),
    Stage(
        name="trainings",
        limit=150,
        least=60,
        cuda=f"{TRAINING} --at-once && {COMMANDS}",
        cpu=f"{TRAINING} --at-once --tiny && {COMMANDS} --at-once 2 --limit 250",
    ),
    _same(
        "together",
        "{python} -m benchmarks.visit_together smoke tests trainings sanitizer",
        limit=170,
        least=60,
        tiny="",
    ),
    # what a second visit runs (gpu_visit_again.sh)
    Stage(
        name="retest",
        limit=200,
        least=30,
        cuda=f"OMP_NUM_THREADS=2 {PYTEST} -n 8 --timeout=200 tests/dmd/kernels -m gpu --last-failed"
        f" --last-failed-no-failures=none || {NONE_CHOSEN}",
        cpu=f"OMP_NUM_THREADS=1 {PYTEST} -n 2 --timeout=200 tests/dmd/kernels -m gpu --last-failed"
        f" --last-failed-no-failures=none || {NONE_CHOSEN}",
    ),
    Stage(
        name="adam",
        limit=150,
        least=20,
        cuda=f"{PYTEST} --timeout=80 tests/launch -m gpu",
        cpu=f"{PYTEST} --timeout=80 tests/launch/test_adam.py",
    ),
    _same(
        "graph",
        "{python} -m benchmarks.visit_training --device {device} --scratch {scratch}/graph"
        " --results {results} --steps 200 --only graph",
        limit=120,
        least=45,
    ),
    # what the runner itself is tested with: it ignores what asks it to end, and starts a process in another session
    _same("hang", "trap '' INT TERM; echo this stage hangs; setsid sleep 300 & sleep 300", limit=300, least=1, tiny=""),
)
FIRST = (
    "device",
    "together",
    "profile",
    "step",
    "training",
    "host",
    "block-sizes",
    "compiled",
    "tests-large",
    "mosei",
    "floors",
    "launches",
)
"""Stages of a first visit, in order; `wheels` goes before whatever is chosen. Compilation may take all that is left."""
AGAIN = (
    "device",
    "smoke",
    "retest",
    "adam",
    "step",
    "graph",
    "host",
    "block-sizes",
    "compiled",
    "tests-large",
    "mosei",
    "profile",
)
"""Stages of a visit after fixes."""
