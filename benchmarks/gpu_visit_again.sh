#!/bin/sh
# A visit after fixes: what failed last time, the steps again, larger cases, a longer captured training.
#   sh benchmarks/visit_wheels.sh FIRST/visit.tar.gz   first: carries the results of the visit before
#   OUT=results sh benchmarks/gpu_visit_again.sh
#   run(command="BUDGET=300 sh benchmarks/gpu_visit_again.sh", carry=[".whl"], timeout_s=350)
set -u
cd "$(dirname "$0")/.." || exit 2
SCRATCH=${SCRATCH:-$(mktemp -d)}
export SCRATCH
if [ -d .whl/previous/pytest_cache ]; then
    mkdir -p "$SCRATCH/results"
    cp -r .whl/previous/pytest_cache "$SCRATCH/results/"
fi
STAGES=${STAGES:-$(python3 -c 'from benchmarks.visit_stages import AGAIN; print(*AGAIN)')}
export STAGES
exec sh benchmarks/gpu_visit.sh
