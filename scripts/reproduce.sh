#!/usr/bin/env bash
# Repeats the experiments whose tables are in README.md and docs; --help lists them.
set -euo pipefail

usage() {
    cat <<'END'
Repeats the experiments whose tables are in README.md and docs.

bash scripts/reproduce.sh FOLDER              # every step, about 45 hours
bash scripts/reproduce.sh FOLDER STEP ...     # some steps, in this order

A step writes its results into FOLDER. A step whose results are there already is skipped; delete
them to repeat it. If interrupted, run the same command again to resume. Times are those of a
slow server; a fast one takes a third.

step           time on two cores   results
choice         15 minutes          choice.md, learning rates and decays on held-out images
study          4 hours             study/report.md, eight variants with ten seeds
plain_rate     60 minutes          plain_rate.md, learning rates of a plain recipe, held out
plain          8 hours             plain/report.md, the eight variants by it, beside study
strengths      7 hours             strengths.md, strengths of more regularisers on held-out images
regularizers   6 hours             regularizers/report.md, more regularisers with ten seeds
best           8 hours             best.md, what was tried on held-out images to improve warped
fast           90 minutes          fast.md, how few epochs and seconds suffice
recipes        7 hours             recipes/report.md, warped, best and distilled with ten seeds
fashion        15 minutes          fashion/report.md, Fashion-MNIST with three seeds
parity         30 minutes          parity.md, the same recipe here and in PyTorch, which it needs
benchmark      45 minutes          benchmark.md, against PyTorch if it is installed
scale          10 minutes          scale.md, growth with batch size, ghost size and replicas
communication  2 minutes           communication.md, what devices communicate in a step
layer          10 minutes          layer.md, cost of the layer against flax.linen.BatchNorm
statistics     30 minutes          statistics.md, rules for the running statistics of the layer

The step fashion reads the four files of Fashion-MNIST from /usr/share/datasets/fashion-mnist, where
Debian's package dataset-fashion-mnist puts them, or from the folder in FASHION_MNIST.
END
}

steps=(
    choice study plain_rate plain strengths regularizers best fast recipes fashion parity
    benchmark scale communication layer statistics
)
plain_recipe=(--config.schedule=constant --config.nesterov=False --config.epochs=25)
fashion=${FASHION_MNIST:-/usr/share/datasets/fashion-mnist}

fail() {
    echo "reproduce.sh: $1" >&2
    exit 2
}

# The file that a step writes last, so that it marks the step as finished.
results() {
    case $1 in
        study | plain | regularizers | recipes | fashion) echo "$out/$1/report.html" ;;
        *) echo "$out/$1.md" ;;
    esac
}

# Writes what a command prints to a file, which exists only once the command has finished.
print_to() {
    local file=$1
    shift
    "$@" >"$file.unfinished"
    mv -- "$file.unfinished" "$file"
}

sweep() {
    python scripts/sweep.py --config configs/bn.py "$@"
}

choice() {
    sweep --vary learning_rate=0.2 --config.l2=5e-4 --workdir="$out/choice/rate"
    sweep --vary l2=0,1e-4,5e-4 --config.learning_rate=0.1 --workdir="$out/choice/l2"
    sweep --vary l1=1e-5,1e-4 --config.learning_rate=0.1 --workdir="$out/choice/l1"
}

strengths() {
    local values
    local second_fold=(
        '--config.train_split=train[10000:]' '--config.validation_split=train[:10000]'
    )
    for values in label_smoothing=0,0.02,0.05,0.1 dropout=0.02,0.05 sam=0.02,0.05,0.1 \
        ema=0.99,0.998 cutout=3,6 elastic=0.5,1 mixup=0.02,0.1; do
        python scripts/sweep.py gbn_l2 --vary "$values" --replicas=3 \
            --workdir="$out/strengths/${values%%=*}"
    done
    for values in label_smoothing=0,0.02,0.05 dropout=0.02,0.05 ema=0.99,0.998 cutout=3,6 \
        elastic=0.5,1; do
        python scripts/sweep.py gbn_l2 --vary "$values" --replicas=3 "${second_fold[@]}" \
            --workdir="$out/strengths_second_fold/${values%%=*}"
    done
    python scripts/recompute_statistics.py "$out"/strengths/*/*=*/ \
        >"$out/strengths/recompute_stats.csv"
    python scripts/sweep.py gbn_l2 --vary dropout=0,0.02,0.05 --replicas=3 \
        --config.dropout_position=max-pool --workdir="$out/dropout_max_pool"
}

vary_fast() {
    local name=$1
    shift
    python scripts/sweep.py fast --replicas=3 --workdir="$out/fast/$name" "$@"
}

test_fast() {
    local epochs=$1
    shift
    python scripts/study.py fast --seeds=5 --config.epochs="$epochs" \
        --workdir="$out/fast/test_$epochs" "$@"
}

fast() {
    local values epochs
    vary_fast epochs --vary epochs=2,3,4
    for values in learning_rate=0.1,0.4 batch_size=32,128 rotation=0,3 ema=0.99,0.995 norm=batch; do
        vary_fast "3_${values%%=*}" --vary "$values" --config.epochs=3
    done
    vary_fast 3_muon --vary optimizer=muon --vary learning_rate=0.01,0.03,0.1 --config.epochs=3
    vary_fast 1 --vary ema=0,0.98,0.99 --vary batch_size=32,64 --vary learning_rate=0.1,0.2 \
        --config.epochs=1
    vary_fast 2 --vary ema=0.98,0.99 --vary rotation=0,7 --config.epochs=2 \
        --config.learning_rate=0.1
    vary_fast 8 --vary ema=0.99,0.998 --vary learning_rate=0.1,0.2 --config.epochs=8
    python scripts/recompute_statistics.py "$out"/fast/epochs/*=*/ >"$out/fast/recompute_stats.csv"
    test_fast 1 --config.ema=0
    for epochs in 2 3 8 9 10; do
        test_fast "$epochs"
    done
}

best() {
    local unchanged="$out/best/final_rate/final_rate=0.0"
    python scripts/sweep.py warped --vary final_rate=0,0.05 --replicas=3 \
        --workdir="$out/best/final_rate"
    python scripts/sweep.py warped --vary final_rate=0 --config.seed=3 --replicas=3 \
        --workdir="$out/best/more_seeds"
    python scripts/sweep.py warped --vary distillation=0.9 --config.temperature=3.0 \
        --config.teacher="$unchanged" --replicas=3 --workdir="$out/best/distillation"
    python scripts/sweep.py warped --vary width=2 --replicas=2 --workdir="$out/best/width"
    python scripts/sweep.py warped --vary distillation=0.9 --config.temperature=3.0 \
        --config.teacher="$out/best/width/width=2" --replicas=6 \
        --workdir="$out/best/distillation_width"
    python scripts/sweep.py warped --vary epochs=60 --replicas=3 --workdir="$out/best/long"
    python scripts/sweep.py warped --vary epochs=60 --config.final_rate=0.05 --config.ema=0.9995 \
        --replicas=3 --workdir="$out/best/long_final_rate"
    python scripts/sweep.py warped --vary epochs=60 --config.optimizer=muon \
        --config.learning_rate=0.03 --replicas=3 --workdir="$out/best/long_muon"
    python scripts/sweep.py warped --vary epochs=60 --config.distillation=0.9 \
        --config.temperature=3.0 --config.teacher="$out/best/width/width=2/seed-0" --replicas=3 \
        --workdir="$out/best/distillation_long"
    python scripts/sweep.py warped --vary optimizer=muon --vary learning_rate=0.01,0.03 \
        --replicas=6 --workdir="$out/best/muon"
    python scripts/recompute_statistics.py "$unchanged" >"$out/best/recompute_stats.csv"
}

benchmark() {
    python scripts/benchmark.py --rounds 5
    python scripts/benchmark.py --study --rounds 3 --steps 156
}

run_step() {
    local file
    file=$(results "$1")
    case $1 in
        choice) print_to "$file" choice ;;
        study) python scripts/study.py --seeds=10 --workdir="$out/study" ;;
        plain_rate)
            print_to "$file" python scripts/sweep.py bn --vary learning_rate=0.01,0.03,0.1 \
                --replicas=3 "${plain_recipe[@]}" --workdir="$out/plain_rate"
            ;;
        plain)
            python scripts/study.py --seeds=10 "${plain_recipe[@]}" --config.learning_rate=0.03 \
                --beside="$out/study" --workdir="$out/plain"
            ;;
        strengths) print_to "$file" strengths ;;
        best) print_to "$file" best ;;
        fast) print_to "$file" fast ;;
        regularizers)
            python scripts/study.py bn gbn_l2 label_smoothing dropout sam ema cutout elastic mixup \
                --seeds=10 --baseline=gbn_l2 --workdir="$out/regularizers"
            ;;
        recipes)
            python scripts/train.py teacher --workdir="$out/teacher"
            # Only distilled learns from the teacher: the others have no distillation.
            python scripts/study.py warped best distilled --seeds=10 \
                --config.teacher="$out/teacher" --workdir="$out/recipes"
            ;;
        fashion)
            python scripts/study.py configs/bn.py configs/l2.py configs/gbn.py --seeds=3 \
                --config.epochs=10 --config.dataset="$fashion" --workdir="$out/fashion"
            ;;
        parity) print_to "$file" python scripts/parity.py --workdir="$out/parity" ;;
        benchmark) print_to "$file" benchmark ;;
        scale) print_to "$file" python scripts/benchmark.py --scale --steps 104 --rounds 2 ;;
        communication) print_to "$file" python scripts/communication.py ;;
        layer) print_to "$file" python scripts/benchmark_layer.py ;;
        statistics) print_to "$file" python scripts/compare_statistics.py ;;
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
    case $step in
        choice | study | plain_rate | plain | strengths | regularizers | best | fast | recipes) ;;
        benchmark | scale | communication | layer | statistics) ;;
        fashion)
            [[ -d $fashion || -e $folder/fashion/report.html ]] ||
                fail "fashion needs Debian's package dataset-fashion-mnist, or FASHION_MNIST=FOLDER"
            ;;
        parity)
            python -c 'import torch' 2>/dev/null || [[ -e $folder/parity.md ]] ||
                fail "parity needs PyTorch: python -m pip install -e '.[benchmark]'"
            ;;
        *) fail "unknown step '$step'; choose from ${steps[*]}" ;;
    esac
done
mkdir -p -- "$folder" 2>/dev/null || fail "cannot make the folder $folder"
out=$(cd -- "$folder" && pwd)
[[ ! -d $fashion ]] || fashion=$(cd -- "$fashion" && pwd)
cd "$(dirname "$0")/.."

for step in "$@"; do
    if [[ -e $(results "$step") ]]; then
        echo "$step: finished already, see $(results "$step")"
    else
        echo "$step: running"
        run_step "$step"
        echo "$step: finished, see $(results "$step")"
    fi
done
