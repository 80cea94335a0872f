#!/bin/sh
# Everything that waits for a CUDA device, in one visit: tests marked gpu, then the benchmarks. From the repository's root:
#   OUT=results sh benchmarks/gpu_visit.sh
# A first start compiles the kernels; TRITON_CACHE_DIR keeps what was compiled.
OUT=${OUT:-benchmarks/results}
mkdir -p "$OUT"
export PYTHONPATH=$PWD
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$OUT/device.csv"
python -m pytest -m gpu -q -ra --durations=20 tests/dmd > "$OUT/tests.txt" 2>&1
echo "tests: exit code $?"
tail -15 "$OUT/tests.txt"
for precision in bf16 fp32; do
    python -m benchmarks.kernels --precision $precision --out "$OUT/kernels_$precision.csv" > "$OUT/kernels_$precision.txt" 2>&1
    echo "kernels $precision: exit code $?"
    tail -20 "$OUT/kernels_$precision.txt"
done
python -m benchmarks.launches --samples 16 --out "$OUT/launches.csv" > "$OUT/launches.txt" 2>&1
echo "launches: exit code $?"
texts=features
python -c "import transformers" 2> /dev/null && texts="features bert-base"
python -m benchmarks.step_cuda --texts $texts --out "$OUT/step_cuda.csv" > "$OUT/step_cuda.txt" 2>&1
echo "step ($texts): exit code $?"
tail -20 "$OUT/step_cuda.txt"
if command -v compute-sanitizer > /dev/null; then
    compute-sanitizer --tool memcheck --error-exitcode 9 \
        python -m pytest -m gpu -q tests/dmd/kernels -k "SMALL or objective" > "$OUT/sanitizer.txt" 2>&1
    echo "compute-sanitizer: exit code $?"
fi
