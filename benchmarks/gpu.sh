#!/bin/sh
# What has to be seen on a GPU: the tests that need one, then the benchmarks. Under nine minutes.
# usage: benchmarks/gpu.sh [folder for the JSON]; python needs mmmlib with its extras test and bench
set -u
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
python=${PYTHON:-python}
mkdir -p "$out"
rm -f "$out/failed"
export PYTHONUNBUFFERED=1
run() { timeout "$@" || echo "FAILED ($?): $*" | tee -a "$out/failed"; }

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/gpu.csv"
run 140 "$python" -m pytest -q -m gpu tests >"$out/tests.txt" 2>&1
tail -n 3 "$out/tests.txt"
on_gpu="--device cuda --threads 4"
run 50 "$python" -m benchmarks.memory $on_gpu --json "$out/memory.json"
run 50 "$python" -m benchmarks.losses $on_gpu --json "$out/losses.json"
run 60 "$python" -m benchmarks.evaluation $on_gpu --json "$out/evaluation.json"
run 90 "$python" -m benchmarks.matching $on_gpu --sizes 206x206 425x738 2000x3600 10000x10000 \
    --solver-sizes 20000x20000 --costs uniform --json "$out/matching.json"
run 80 "$python" -m benchmarks.clustering $on_gpu --sizes 4120 11909 34167 --opponents \
    --json "$out/clustering.json"
run 50 "$python" -m benchmarks.clustering $on_gpu --sizes 100000 --dim 768 --repeats 1 \
    --opponents --json "$out/clustering.json"
[ ! -e "$out/failed" ]
