#!/usr/bin/env bash
# Makes all measurements that need an NVIDIA GPU; --help lists them.
set -euo pipefail

usage() {
    cat <<'END'
Makes all measurements that need an NVIDIA GPU, in this order.

bash scripts/gpu.sh FOLDER

A call takes at most ten minutes. Run it again until it says that everything is finished: what is in
FOLDER already is not repeated, and training that was interrupted resumes.

step          results
benchmark     benchmark.md, an epoch of one run, against PyTorch if it is installed
scale         scale.md, growth with batch size, ghost size and replicas, up to 160
convolutions  convolutions.md, XLA's own convolutions (cuDNN) against those of gpu.py
resuming      resuming.md, whether a run that is interrupted ends with the same bits
study         study/report.html, eight variants with twenty seeds
END
}

fail() {
    echo "gpu.sh: $1" >&2
    exit 2
}

case ${1:-} in
    --help | -h) usage; exit ;;
    "") fail "name a folder for the results; --help lists them" ;;
    -*) fail "unknown option $1; --help explains the use" ;;
esac
(($# == 1)) || fail "one folder only; --help explains the use"
mkdir -p -- "$1" 2>/dev/null || fail "cannot make the folder $1"
out=$(cd -- "$1" && pwd)
cd "$(dirname "$0")/.."

# Runs a command in what is left of the call, with SIGTERM at its end, at which training saves.
limited() {
    local left=$((540 - SECONDS))
    ((left > 0)) && timeout --signal=TERM "$left" "$@"
}

# Writes what a command prints to a file, which exists only once the command has finished.
print_to() {
    local file=$1
    shift
    limited "$@" >"$file.unfinished" && mv -- "$file.unfinished" "$file"
}

# Trains one run at a stretch, and another that is interrupted every twenty seconds.
resuming() {
    local train=(python scripts/train.py --config configs/gbn.py --config.epochs=200)
    [[ -e $out/whole/history.pkl ]] || limited "${train[@]}" --workdir="$out/whole" || return
    until [[ -e $out/parts/history.pkl ]]; do
        ((SECONDS < 500)) || return
        timeout --signal=TERM 20 "${train[@]}" --workdir="$out/parts" || (($? == 124)) || return
    done
    if cmp -- "$out/whole/variables.msgpack" "$out/parts/variables.msgpack"; then
        echo "The interrupted run ended with the same bits." >"$out/resuming.md"
    else
        echo "The interrupted run ended with other bits." >"$out/resuming.md"
    fi
}

run_step() {
    case $1 in
        benchmark) print_to "$out/benchmark.md" python scripts/benchmark.py --rounds 3 ;;
        scale) print_to "$out/scale.md" python scripts/benchmark.py --scale --steps 104 --rounds 2 ;;
        convolutions) print_to "$out/convolutions.md" python scripts/convolutions.py ;;
        resuming) resuming ;;
        study) limited python scripts/study.py --seeds=20 --workdir="$out/study" ;;
    esac
}

for step in benchmark scale convolutions resuming study; do
    file=$out/$step.md
    [[ $step != study ]] || file=$out/study/report.html
    if [[ ! -e $file ]]; then
        echo "$step: running"
        run_step "$step" || true
        if [[ ! -e $file ]]; then
            echo "$step: not finished; run the same command again"
            exit 1
        fi
    fi
    echo "$step: finished, see $file"
done
