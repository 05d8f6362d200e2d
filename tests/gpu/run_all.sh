#!/usr/bin/env bash
# All checks and measurements on one GPU, or their rehearsal on a CPU: tests/gpu/README.md says what they are.
#   tests/gpu/run_all.sh [--quick] [--rehearse] [--folder FOLDER] [--parts 'kernels bits ...']
# PYTHON names the interpreter. Exit status 1 if a correctness part failed.
set -uo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3} quick='' rehearse='' folder=/tmp/draftline-gpu wanted=''
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=--quick ;;
    --rehearse) rehearse=--rehearse ;;
    --folder) folder=$2 && shift ;;
    --parts) wanted=" $2 " && shift ;;
    *) echo "unknown argument $1" >&2 && exit 2 ;;
  esac
  shift
done
[ -n "${REHEARSE:-}" ] && rehearse=--rehearse
work=$folder/parts
rm -rf "$work" && mkdir -p "$work" || exit 2

# Wheels that travelled with the tree go into a folder of this run alone; the system's packages stay as they are.
if compgen -G '.whl/*.whl' >/dev/null && [ -z "$rehearse" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl || exit 2
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ -n "$rehearse" ]; then
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} CUDA_VISIBLE_DEVICES=''
else
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
  export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/draftline-triton-cache}  # shared: what one part compiled is there for all
fi

started=$SECONDS total=480
[ -n "$quick" ] && total=175
[ -n "$rehearse" ] && total=380

# part NAME LIMIT COMMAND...: run a part under its limit, or what is left of the whole; never fails.
part() {
  local name=$1 limit=$2 left=$((total - (SECONDS - started)))
  shift 2
  echo "$name" >>"$work/plan"
  [ "$left" -lt "$limit" ] && limit=$left
  [ "$limit" -lt 5 ] && return
  timeout --kill-after=15 "$limit" "$PYTHON" -m "$@" --seconds "$limit" --folder "$work" $quick $rehearse \
    >"$work/$name.log" 2>&1
  echo $? >"$work/$name.code"
  echo "$name ended with code $(cat "$work/$name.code"), $((SECONDS - started)) s after the start"
}
# The same, if it or its group (bits for bits-8b) is among --parts, or there are none.
maybe() {
  [ -z "$wanted" ] || [[ $wanted == *" $1 "* || $wanted == *" ${1%%-*} "* ]] || return 0
  part "$@"
}

: >"$work/plan"
maybe environment 60 tests.gpu.environment

# Correctness: bound by compiling and by the host, so side by side. `compile` fills Triton's cache for the speeds.
if [ -n "$rehearse" ]; then
  maybe kernels 300 tests.gpu.kernels &
  maybe tokens 300 tests.gpu.tokens &
  wait
  maybe bits 300 tests.gpu.bits &
  maybe traps 300 tests.gpu.traps &
  wait
  maybe compile 300 tests.gpu.compile &
  maybe speed 300 tests.gpu.speed &
  maybe http 300 tests.gpu.http_speed &
  wait
else
  correctness=170
  [ -n "$quick" ] && correctness=80
  for group in products attention choosing quantised; do
    maybe "kernels-$group" $correctness tests.gpu.kernels --only $group &
  done
  for model in 135m 0.6b 8b; do maybe "bits-$model" $correctness tests.gpu.bits --only $model & done
  maybe traps $correctness tests.gpu.traps &
  for model in 135m 0.6b 8b; do maybe "compile-$model" $correctness tests.gpu.compile --only $model & done
  for model in llama gpt2 qwen3 qwen2 float32 float16; do
    maybe "tokens-$model" $correctness tests.gpu.tokens --only $model &
  done
  wait
  # Speed: one after the other, the card to itself; the most telling first.
  maybe speed-135m 60 tests.gpu.speed --only 135m
  maybe speed-0.6b 75 tests.gpu.speed --only 0.6b
  if [ -z "$quick" ]; then
    maybe speed-8b 70 tests.gpu.speed --only 8b
    maybe http 75 tests.gpu.http_speed
    maybe speed-pair 60 tests.gpu.speed --only pair
    maybe speed-8b-q4 50 tests.gpu.speed --only 8b-q4
  fi
fi

"$PYTHON" -m tests.gpu.summary "$work" $rehearse | tee "$folder/table.txt"
status=${PIPESTATUS[0]}
if [ -n "${OUT:-}" ]; then  # a folder from which few files come back
  cp "$folder/table.txt" "$work/all.json" "$OUT" && tar -czf "$OUT/parts.tgz" -C "$work" .
fi
exit "$status"
