#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, offline, with torch and triton already there: install without dependencies, prove and
# time the kernels as a user's first call does, run the tests on the device, stress it, then torch.nn's table (with the
# kernels that cuDNN ran) and ours; short tables last. Everything is also written under $OUT (default:
# bench/results/gpu). Under nine minutes: every part has its limit.
#
#   PART=tests|table|tune      one part (default: tests and table)
#   DEVICE=cpu                 a rehearsal without a GPU: Triton's interpreter, tiny shapes, bench/results left alone
#   TESTS="tests/triton"        which tests
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
out=${OUT:-bench/results/gpu}
part=${PART:-all}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONUNBUFFERED=1
# What is measured on this device, by `fastcells tune` first, and what "auto" runs in all that follows.
export FASTCELLS_CACHE_DIR="$out/cache"
# Seconds for the tests, for cuDNN's table and for ours: a part that runs alone may take its time.
case $part in
  all) limits=(170 50 80) ;;
  tests) limits=(340 0 0) ;;
  table) limits=(0 140 320) ;;
  tune) limits=(0 0 0) ;;
  *) echo "PART is tests, table or tune, not $part" >&2 && exit 2 ;;
esac

if [ "$device" = cpu ]; then
  export TRITON_INTERPRET=1
  tiny=--tiny selection=smoke rounds=${ROUNDS:-2} tests=${TESTS:-tests/triton/test_rules.py tests/triton/test_plan.py}
  contenders=fastcells-auto,fastcells-triton
  kinds="--hidden 8 --steps 3 --batch 2"
else
  tiny='' selection=short rounds=${ROUNDS:-20} tests=${TESTS:-tests}
  contenders=fastcells-auto,fastcells-triton,fastcells-triton-step,flashrnn,torchrl-triton,haste
  kinds="--cell gru --cell lstm --dtype bfloat16 --dtype float32 --hidden 256"
fi

status=0
# limited SECONDS NAME COMMAND...: run it, keep its output under $out, show the end of it.
limited() {
  local seconds=$1 name=$2 start=$SECONDS
  shift 2
  echo "== $name"
  timeout --signal=INT --kill-after=10 "$seconds" "$@" >"$out/$name.log" 2>&1
  local code=$?
  tail -n "${LINES_SHOWN:-12}" "$out/$name.log"
  echo "-- $name: exit status $code after $((SECONDS - start)) s"
  [ $code -eq 0 ] || status=1
}

"$python" - "$device" <<'PY' || exit 1
import sys
import torch
print("torch", torch.__version__, "cuda", torch.cuda.is_available())
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("no CUDA device: DEVICE=cpu rehearses this script without one")
PY
[ -n "${NO_INSTALL:-}" ] || "$python" -m pip install --quiet --no-deps --no-build-isolation -e . || exit 1

if [ "$part" = all ] || [ "$part" = tests ]; then
  # The package's own table of errors first: a kernel that is wrong or does not launch shows within a minute.
  limited 60 doctor "$python" -m fastcells doctor
  # shellcheck disable=SC2086
  LINES_SHOWN=40 limited 60 verdicts "$python" -m fastcells tune --device "$device" $kinds
  # shellcheck disable=SC2086  # several files, and an option or none
  limited "${limits[0]}" tests "$python" -m pytest $tests
  # shellcheck disable=SC2086
  limited 60 stress "$python" -m bench.stress --device "$device" --seconds 30 $tiny
fi
if [ "$part" = tune ]; then
  # shellcheck disable=SC2086
  limited 400 tune "$python" -m bench.tune --device "$device" --rounds "$rounds" --seconds 360 --out "$out" $tiny
fi
if [ "$part" = all ] || [ "$part" = table ]; then
  # shellcheck disable=SC2086
  limited $((limits[1] + 15)) cudnn "$python" -m bench.cudnn --device "$device" --rounds "$rounds" \
    --seconds "${limits[1]}" --out "$out" $tiny
  # A timing that comes too late is dropped, not the others: pytest writes its JSON when it is interrupted, too.
  limited "${limits[2]}" ours "$python" -m pytest bench --device "$device" --selection "$selection" --rounds "$rounds" \
    --contenders "$contenders" --benchmark-json="$out/ours.json" --benchmark-quiet
  LINES_SHOWN=80 limited 30 report "$python" -m bench.report "$out/ours.json" --out "$out" --no-readme
fi
exit $status
