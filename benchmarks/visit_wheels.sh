#!/bin/sh
# Make .whl/, what a visit carries to a GPU machine that has torch and Triton and no package index: wheels of what it
# lacks, and the commit, since .git does not travel. From anywhere, on a machine with an index:
#   sh benchmarks/visit_wheels.sh [VISIT.tar.gz]
#   CACHE=90 sh benchmarks/visit_wheels.sh    kernels compiled for sm_90 go along: some ten minutes here, not there
# With the tar of an earlier visit its results go along, so that benchmarks/gpu_visit_again.sh repeats what failed.
# The folder is ignored through .git/info/exclude. PYTHON: a Python with pip. TREE_LIMIT: MiB that tree and folder may take.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$(test -x .venv/bin/python && echo .venv/bin/python || echo python3)}
TREE_LIMIT=${TREE_LIMIT:-64}
ABI="--only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none
     --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64"
BUILT="deepspeed==0.19.8" # has no wheel on the index
TRITON="triton==3.6.0"    # what the GPU machine has
FETCHED="pydantic annotated-types typing-inspection typing-extensions hjson webdataset braceexpand"

exclude=$(git rev-parse --git-path info/exclude)
mkdir -p "$(dirname "$exclude")"
grep -qx '/.whl/' "$exclude" 2>/dev/null || echo '/.whl/' >> "$exclude"
rm -rf .whl
mkdir .whl
"$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir .whl $BUILT
"$PYTHON" -m pip download --quiet --no-deps --dest .whl $ABI $FETCHED
core=$(unzip -p .whl/pydantic-[0-9]*.whl '*/METADATA' | sed -n 's/^Requires-Dist: pydantic-core==\([0-9.]*\).*/\1/p')
"$PYTHON" -m pip download --quiet --no-deps --dest .whl $ABI "pydantic-core==$core"
git describe --always --abbrev=40 --exclude='*' --dirty > .whl/commit.txt
if [ -n "${CACHE:-}" ]; then
    triton=$(mktemp -d)
    "$PYTHON" -m pip download --quiet --no-deps --dest "$triton" $ABI --platform manylinux_2_27_x86_64 $TRITON
    "$PYTHON" -m benchmarks.visit_cache "$triton"/triton-*.whl --arch "$CACHE" --out .whl/triton_cache.tar.xz
    rm -rf "$triton"
fi
if [ $# -gt 0 ]; then
    mkdir .whl/previous
    tar -xzf "$1" -C .whl/previous
fi
ls -l .whl | awk 'NR > 1 {printf "%8.2f MiB  %s\n", $5 / 1048576, $NF}'
tree=$(git ls-files -z --cached --others --exclude-standard | du -cb --files0-from=- 2>/dev/null | tail -1 | cut -f1)
carried=$(du -sb .whl | cut -f1)
awk -v tree="$tree" -v carried="$carried" -v limit="$TREE_LIMIT" 'BEGIN {
    total = (tree + carried) / 1048576
    printf "%8.2f MiB  tree and .whl/ together; at most %d travel\n", total, limit
    exit total > limit
}'
