"""The commands that read a trained run, on the run that `benchmarks.visit_training` left: exit codes, one figure each.

    python -m benchmarks.visit_commands --scratch SCRATCH --results RESULTS

All at once, through `python -m dmd.cli`: evaluate, the same on the CPU, predict, report, missing, export, doctor; then
predict from what was exported. `commands.csv` has a row for each. The mean absolute errors of evaluate on the GPU and
on the CPU must be near each other.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.tables import Table, commit

ROOT = Path(__file__).resolve().parents[1]
NEAR = 2e-2
"""Allowed between the mean absolute errors of a GPU under bf16 and of a CPU, on a scale from -3 to 3."""


def run(name: str, arguments: list[str], results: Path, extra: dict[str, str], limit: float) -> tuple[int, float, str]:
    """(exit code, seconds, last line) of a command; its output goes to `command-NAME.txt`. 124: cut off."""
    began = time.perf_counter()
    log = results / f"command-{name}.txt"
    with log.open("w") as stream:
        try:
            command = [sys.executable, "-m", "dmd.cli", *arguments]
            environment = {**os.environ, **extra}
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, timeout=limit
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    lines = log.read_text(errors="replace").strip().splitlines()
    return code, round(time.perf_counter() - began, 1), lines[-1][:200] if lines else ""


def figure(name: str, scratch: Path) -> str:
    """What a command made, in a few words."""
    made = scratch / "commands"
    if name in ("evaluate", "evaluate-cpu") and (made / f"{name}.json").exists():
        return f"MAE {json.loads((made / f'{name}.json').read_text())['metrics']['fused']['mae']:.5f}"
    if name in ("predict", "predict-exported") and (made / f"{name}.csv").exists():
        return f"{len((made / f'{name}.csv').read_text().splitlines()) - 1} rows"
    if name in ("report", "missing", "exported"):
        files = [path for path in (made / name).rglob("*") if path.is_file()]
        return f"{len(files)} files, {sum(path.stat().st_size for path in files)} bytes"
    return ""


def main() -> int:
    """Run the commands; 1: one failed, or GPU and CPU are apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--at-once", type=int, default=8, help="commands that run beside each other")
    parser.add_argument("--limit", type=float, default=45, help="seconds for a command")
    options = parser.parse_args()
    trained, shards, made = (options.scratch / name for name in ("off", "shards", "commands"))
    made.mkdir(parents=True, exist_ok=True)
    commands = {
        "evaluate": ["evaluate", str(trained), "--json", str(made / "evaluate.json")],
        "evaluate-cpu": ["evaluate", str(trained), "--json", str(made / "evaluate-cpu.json")],
        "predict": ["predict", str(trained), str(shards), "--out", str(made / "predict.csv"), "--split", "test"],
        "report": ["report", str(trained), "--out", str(made / "report"), "--projection", "pca"],
        "missing": ["missing", str(trained), "--out", str(made / "missing"), "--rates", "0", "0.5", "--unit", "frame"],
        "exported": ["export", str(trained), str(made / "exported")],
        "doctor": ["doctor"],
    }
    on_cpu = {"evaluate-cpu": {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}}
    again = {"predict-exported": [*commands["predict"]]}
    again["predict-exported"][1] = str(made / "exported")
    again["predict-exported"][4] = str(made / "predict-exported.csv")
    table = Table(options.results / "commands.csv")
    failed, results = False, []
    with ThreadPoolExecutor(options.at_once) as pool:
        for wave in (commands, again):
            ended = {
                name: pool.submit(run, name, arguments, options.results, on_cpu.get(name, {}), options.limit)
                for name, arguments in wave.items()
            }
            for name, future in ended.items():
                code, seconds, line = future.result()
                made_by_it = figure(name, options.scratch)
                table.add(
                    {
                        "command": name,
                        "exit_code": code,
                        "seconds": seconds,
                        "figure": made_by_it,
                        "last_line": line,
                        "commit": commit(),
                    }
                )
                failed |= code != 0 and name != "doctor"  # doctor's code says what it thinks of the machine
                results.append(f"{name} {code}{f' ({made_by_it})' if made_by_it else ''}")
                print(results[-1], f"{seconds} s:", line, flush=True)
    errors = [figure(name, options.scratch).removeprefix("MAE ") for name in ("evaluate", "evaluate-cpu")]
    if all(errors):
        apart = abs(float(errors[0]) - float(errors[1]))
        failed |= apart > NEAR
        results.append(f"MAE of device and CPU {apart:.1e} apart, {NEAR:.0e} allowed")
    print("; ".join(results))
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
