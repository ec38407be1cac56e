#!/usr/bin/env bash
# Everything that the README shows, measured on this machine: bash scripts/reproduce.sh FOLDER
# With a GPU it takes minutes; on two cores, hours. What is finished is not trained again.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?"give a folder for the results"}

mkdir -p "$out"
python scripts/benchmark.py --json > "$out/benchmark.json"
python scripts/benchmark.py --scale --json > "$out/scale.json"
python scripts/study.py --seeds=20 --workdir="$out/study"
python scripts/study.py configs/best.py configs/fast.py --seeds=5 --workdir="$out/recipes"
