#!/usr/bin/env bash
# Repeats the experiments whose tables are in README.md and docs; --help lists them.
set -euo pipefail

usage() {
    cat <<'END'
Repeats the experiments whose tables are in README.md and docs.

bash benchmarks/reproduce.sh FOLDER              # every step, about 35 hours
bash benchmarks/reproduce.sh FOLDER STEP ...     # some steps, in this order

A step writes its runs into FOLDER/STEP, and what it prints into FOLDER/STEP.txt when it is
finished. A step whose text is there already is skipped; delete it to repeat the step. If
interrupted, run the same command again to resume. Times are those of a slow server; a fast one
takes a third.

step           time on two cores   what
choice         15 minutes          learning rates and decays on held-out images
study          4 hours             eight variants with ten seeds
plain_rate     1 hour              learning rates of a plain recipe on held-out images
plain          8 hours             the eight variants by it, beside study
strengths      8 hours             strengths of more regularisers on two parts of held-out images
regularizers   6 hours             more regularisers with ten seeds
epochs         1 hour              25 or 60 epochs of warped on held-out images
recipes        3 hours             warped and best with ten seeds
fast           90 minutes          how few epochs suffice: fast on held-out images, and tested
fashion        15 minutes          Fashion-MNIST with three seeds
parity         30 minutes          the same recipe here and in PyTorch, which it needs
benchmark      30 minutes          an epoch here and in PyTorch, if it is installed
cores          15 minutes          the same with a run on each core, as in a study
layer          10 minutes          the layer against flax.linen.BatchNorm
resuming       30 minutes          whether a run that is interrupted ends with the same bits

The step fashion reads the four files of Fashion-MNIST from /usr/share/datasets/fashion-mnist, where
Debian's package dataset-fashion-mnist puts them, or from the folder in FASHION_MNIST. On a GPU,
benchmark and resuming measure what only a GPU can tell, and study takes minutes.
END
}

mapfile -t steps < <(usage | sed -nE 's/^(\w+) +[0-9]+ (minutes|hours?) .*/\1/p')
fashion=${FASHION_MNIST:-/usr/share/datasets/fashion-mnist}

fail() {
    echo "reproduce.sh: $1" >&2
    exit 2
}

# Takes the name of a script, the folder of its runs below that of all results, and its arguments.
run() {
    python "scripts/$1.py" --workdir="$out/$2" "${@:3}"
}

choice() {
    run sweep choice/rate bn --vary learning_rate=0.2 --config.l2=5e-4
    run sweep choice/l2 bn --vary l2=0,1e-4,5e-4 --config.learning_rate=0.1
    run sweep choice/l1 bn --vary l1=1e-5,1e-4 --config.learning_rate=0.1
}

# Takes the name of the part that is held out, and the splits.
strengths() {
    local values
    for values in label_smoothing=0,0.02,0.05,0.1 dropout=0.02,0.05 sam=0.02,0.05,0.1 \
        ema=0.99,0.998 cutout=3,6 elastic=0.5,1 mixup=0.02,0.1; do
        run sweep "strengths/$1/${values%%=*}" gbn_l2 --vary "$values" --replicas=3 \
            --config.train_split="$2" --config.validation_split="$3"
    done
}

fast() {
    local values epochs
    run sweep fast/epochs fast --vary epochs=2,3,4,8 --replicas=3
    for values in learning_rate=0.1,0.4 batch_size=32,128 rotation=0,3 ema=0.99,0.995 norm=batch; do
        run sweep "fast/3_${values%%=*}" fast --vary "$values" --replicas=3 --config.epochs=3
    done
    run sweep fast/1 fast --vary ema=0,0.98,0.99 --vary batch_size=32,64 \
        --vary learning_rate=0.1,0.2 --replicas=3 --config.epochs=1
    run study fast/test_1 fast --seeds=5 --config.epochs=1 --config.ema=0
    for epochs in 2 3 8 9 10; do
        run study "fast/test_$epochs" fast --seeds=5 --config.epochs="$epochs"
    done
}

# Trains one run at a stretch, and another that is interrupted every twenty seconds.
resuming() {
    local train=(python scripts/train.py gbn --config.epochs=100) runs="$out/resuming"
    [[ -e $runs/whole/history.pkl ]] || "${train[@]}" --workdir="$runs/whole"
    until [[ -e $runs/parts/history.pkl ]]; do
        timeout --foreground 20 "${train[@]}" --workdir="$runs/parts" || (($? == 124))
    done
    cmp -- "$runs"/{whole,parts}/variables.msgpack && echo "The weights are the same."
}

take_step() {
    local plain=(--config.schedule=constant --config.nesterov=False --config.epochs=25)
    case $step in
        study) run study study --seeds=10 ;;
        plain_rate)
            run sweep plain_rate bn --vary learning_rate=0.01,0.03,0.1 --replicas=3 "${plain[@]}"
            ;;
        plain)
            run study plain --seeds=10 "${plain[@]}" --config.learning_rate=0.03 \
                --compare_claims_with="$out/study"
            ;;
        strengths)
            strengths last 'train[:-10000]' 'train[-10000:]'
            strengths first 'train[10000:]' 'train[:10000]'
            ;;
        regularizers)
            run study regularizers bn gbn_l2 label_smoothing dropout sam ema cutout elastic mixup \
                --seeds=10 --baseline=gbn_l2
            ;;
        epochs) run sweep epochs warped --vary epochs=25,60 --replicas=3 ;;
        recipes) run study recipes warped best --seeds=10 ;;
        fashion)
            run study fashion bn l2 gbn --seeds=3 --config.epochs=10 --config.dataset="$fashion"
            ;;
        parity) python benchmarks/parity.py --workdir="$out/parity" ;;
        benchmark) python benchmarks/benchmark.py ;;
        cores) python benchmarks/benchmark.py --study --rounds=3 --steps=156 ;;
        layer) python benchmarks/layer.py ;;
        *) "$step" ;; # the name of a function
    esac
}

case ${1:-} in
    --help | -h) usage; exit ;;
    "") fail "name a folder for the results; --help lists the steps" ;;
    -*) fail "unknown option $1; --help lists the steps" ;;
esac
folder=$1
shift
(($#)) || set -- "${steps[@]}"
for step in "$@"; do
    [[ " ${steps[*]} " == *" $step "* && $step != *" "* ]] ||
        fail "unknown step '$step'; choose from ${steps[*]}"
    [[ $step != fashion || -d $fashion || -e $folder/fashion.txt ]] ||
        fail "fashion needs Debian's package dataset-fashion-mnist, or FASHION_MNIST=FOLDER"
done
mkdir -p -- "$folder" 2>/dev/null || fail "cannot make the folder $folder"
out=$(cd -- "$folder" && pwd)
[[ ! -d $fashion ]] || fashion=$(cd -- "$fashion" && pwd)
cd "$(dirname "$0")/.."

for step in "$@"; do
    text=$out/$step.txt
    if [[ -e $text ]]; then
        echo "$step: finished already, see $text"
    else
        echo "$step: running"
        take_step | tee "$text.unfinished"
        mv -- "$text.unfinished" "$text"
        echo "$step: finished, see $text"
    fi
done
