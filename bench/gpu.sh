#!/usr/bin/env bash
# Everything that needs a GPU, in stages of at most seven minutes each (the first: nine and a half) on one H200:
#
#   bench/gpu.sh first OUT      what decides the next steps        first.log, first-*.xml, forms.jsonl, rows.jsonl, ...
#   bench/gpu.sh prove OUT      the tests marked `gpu`             prove.log, prove.xml, prove-*.xml
#   bench/gpu.sh kernels OUT    `lastword bench kernels`           kernels.log, .jsonl, roofline.svg, descriptor.jsonl
#   bench/gpu.sh model OUT      `lastword bench model`, all sizes  model.log, model-SIZE.jsonl, .svg
#   bench/gpu.sh peers OUT      `lastword bench peers`             peers.log, peers.json
#
# `--dry` after OUT runs a stage on the CPU at a tiny size. Needs a checkout and a Python ($PYTHON,
# default python3) with the dependencies; installs lastword from this checkout if it is not installed.
# Needs no network and no checkpoint. Results are written as they are measured, so a stopped stage keeps them.
# LASTWORD_COMMIT=HASH names the commit in the results if the checkout has no .git.
# If the GPU can be had for one call only, run `first`; README.md in this folder says what each result decides.
set -euo pipefail

usage() {
    sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

[ $# -ge 2 ] && [ $# -le 3 ] || usage
stage=$1 out=$2 dry=${3:-}
[[ $stage =~ ^(first|prove|kernels|model|peers)$ && $dry =~ ^(|--dry)$ ]] || usage
python=${PYTHON:-python3}
limit=420 # seconds, after which a stage is stopped as by Ctrl-C
[ "$stage" = first ] && limit=570

mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

where=$("$python" -c 'import lastword; print(lastword.__file__)' 2>/dev/null || true)
if [ -z "$where" ] || { [ -z "$dry" ] && [ "$where" != "$PWD/engine/__init__.py" ]; }; then
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
fi

# Run a command within the limit, show and keep its output, and return its status.
logged() {
    local log=$1
    shift
    timeout --signal=INT --kill-after=10 $((SECONDS < limit ? limit - SECONDS : 1)) "$@" 2>&1 |
        tee -a "$out/$log"
}

bench() {
    local log=$1
    shift
    logged "$log" "$python" -m lastword.cli.main bench "$@"
}

# If a command fails or is stopped, the rest of the stage still runs, but the stage fails.
status=0
try() { "$@" || status=$?; }

# Run the tests marked `gpu` in a file or folder; the results go to the named file.
suite() { try logged "$stage.log" "$python" -m pytest -m gpu --junitxml "$out/$1" "${@:2}"; }
# Status 5 means that no test is marked.
collect() { logged "$stage.log" "$python" -m pytest -m gpu --collect-only -q tests/gpu || [ $? -eq 5 ]; }

rm -f "$out/$stage.log"
case $stage in
first)
    if [ -n "$dry" ]; then
        collect
        size=(--device cpu --model tiny --tokens 64 --rep-ms 1) long=("${size[@]}")
        model=(--device cpu --model tiny --tokens 64 --lengths 16 --rounds 1)
    else
        size=(--model 0.6B 4B) long=(--model 0.6B 8B)
        model=(--model 0.6B --tokens 131072 --lengths 32 512 8192 --rounds 1)
        # Wrong values make every time below worthless.
        limit=200 suite first-kernels.xml tests/gpu/test_kernels.py
    fi
    limit=290 try bench first.log kernels --op forest_attention "${long[@]}" \
        --beside sdpa-cudnn stages-2 scaled before --json "$out/forms.jsonl"
    [ -n "$dry" ] || limit=400 suite first-graphs.xml tests/gpu/test_graphs.py
    limit=450 try bench first.log model "${model[@]}" --json "$out/first-model.jsonl"
    limit=490 try bench first.log model "${model[@]}" --no-cuda-graphs --json "$out/first-model-launched.jsonl"
    limit=540 try bench first.log kernels --op qk_norm_rope add_rms_norm swiglu final_attention "${size[@]}" --beside \
        --json "$out/rows.jsonl"
    # No GPU has run this form yet: if it hangs, everything above is kept.
    try bench first.log kernels --op forest_attention "${long[@]}" --beside descriptor --json "$out/descriptor.jsonl"
    ;;
prove)
    if [ -n "$dry" ]; then
        collect
    else
        # Tests that may hang or be stopped run last, each file in its own process and with its own result file.
        late=(tests/gpu/test_{warp_specialised_attention,sanitizer}.py)
        suite prove.xml tests/gpu "${late[@]/#/--ignore=}"
        for file in "${late[@]}"; do suite "prove-$(basename "$file" .py).xml" "$file"; done
    fi
    ;;
kernels)
    size=() beside=()
    if [ -n "$dry" ]; then
        size=(--device cpu --model tiny --tokens 64 --rep-ms 1) beside=(--beside sdpa-flash)
    fi
    # Compiling baselines takes most of the stage: this limit leaves time for the next command.
    limit=330 try bench kernels.log kernels --json "$out/kernels.jsonl" --plot "$out/roofline.svg" \
        "${size[@]}" "${beside[@]}"
    # A candidate that no GPU has run yet runs in its own process: if it hangs, the rows above are kept.
    try bench kernels.log kernels --op forest_attention --beside sdpa-cudnn descriptor \
        --json "$out/descriptor.jsonl" "${size[@]}"
    ;;
model)
    if [ -n "$dry" ]; then
        try bench model.log model --device cpu --model tiny --tokens 64 --lengths 16 32 --rounds 1 \
            --json "$out/model-tiny.jsonl" --plot "$out/model-tiny.svg"
    else
        # Nothing overlaps the first batches; a small model needs more tokens to make their share of the time small.
        declare -A tokens=([0.6B]=524288 [4B]=131072 [8B]=65536)
        for size in 0.6B 4B 8B; do
            try bench model.log model --model "$size" --tokens "${tokens[$size]}" \
                --json "$out/model-$size.jsonl" --plot "$out/model-$size.svg"
        done
        try bench model.log model --model 4B --quantize fp8 --quick
    fi
    ;;
peers)
    options=(--device cuda --rounds 3 --threads "$(nproc)")
    if [ -n "$dry" ]; then
        scratch=$(mktemp -d)
        trap 'rm -rf "$scratch"' EXIT
        "$python" -m lastword.bench.checkpoint "$scratch" --like tiny
        options=(--model "$scratch" --quick --precisions fp32 --threads 1)
    fi
    try bench peers.log peers "${options[@]}"
    tail -n 1 "$out/peers.log" >"$out/peers.json"
    ;;
esac
exit $status
