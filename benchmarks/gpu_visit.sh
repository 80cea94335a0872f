#!/bin/sh
# Everything that waits for a GPU, in one call. First, where there is a package index: sh benchmarks/visit_wheels.sh
# Then on the GPU machine, from anywhere (the environment is in benchmarks/visit.py):
#   OUT=results sh benchmarks/gpu_visit.sh                      everything, 450 s at most
#   OUT=results STAGES="smoke step" sh benchmarks/gpu_visit.sh  some of it
#   DEVICE=cpu BUDGET=3600 sh benchmarks/gpu_visit.sh           a dry run without a GPU
# Where a command is sent to another machine, with .whl carried along:
#   run(command="BUDGET=450 sh benchmarks/gpu_visit.sh", carry=[".whl"], timeout_s=500)
set -u
cd "$(dirname "$0")/.." || exit 2
exec python3 -m benchmarks.visit
