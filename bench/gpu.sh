#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, offline, with torch and triton already there: install without dependencies, check the
# kernels and run the tests on every core, time what was right beside torch.nn, stress the card; short tables last.
# Everything is also written under $OUT (default: bench/results/gpu). Under nine minutes: every part has its limit.
#
#   PART=check|time|stress|table|tune   one part (default: check, time and stress)
#   DEVICE=cpu                 a rehearsal without a GPU: Triton's interpreter, tiny shapes, bench/results left alone
#   TESTS="tests/triton"       which tests
#   SECONDS_EACH=130           what the parts "check" and "time" may take
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
out=${OUT:-bench/results/gpu}
part=${PART:-all}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8  # the latter for tests with deterministic algorithms
# What is measured on this device, by `fastcells tune` first, and what "auto" runs in all that follows.
export FASTCELLS_CACHE_DIR="$out/cache"
each=${SECONDS_EACH:-130}
# Seconds of torch.nn's table, and of ours.
limits=(140 320)
case $part in
  all | check | time | stress | table | tune) ;;
  *) echo "PART is check, time, stress, table or tune, not $part" >&2 && exit 2 ;;
esac
does() { [ "$part" = "$1" ] || { [ "$part" = all ] && [ "$1" != table ] && [ "$1" != tune ]; }; }

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
  return $code
}

"$python" - "$device" <<'PY' || exit 1
import sys
import torch
print("torch", torch.__version__, "cuda", torch.cuda.is_available())
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("no CUDA device: DEVICE=cpu rehearses this script without one")
PY
[ -n "${NO_INSTALL:-}" ] || "$python" -m pip install --quiet --no-deps --no-build-isolation -e . || exit 1

if does check; then
  # To compile takes longest, so all of these run at once, on every core: the package's own table of errors, the tests,
  # and the grid of shapes that is timed below.
  cores=$(nproc)
  half=$(( (cores + 1) / 2 ))
  set -m  # or what runs in the background would not hear the interrupt that ends it
  limited "$((each + 15))" doctor "$python" -m fastcells doctor >"$out/doctor.txt" 2>&1 &
  limited "$((each + 20))" device-check "$python" -m bench.device --part check --device "$device" --out "$out" \
    --seconds "$each" --jobs "$half" $tiny >"$out/device-check.txt" 2>&1 &
  # shellcheck disable=SC2086  # several files, and an option or none
  limited "$each" tests env FASTCELLS_FAILURES="$out/failures.txt" "$python" -m pytest -p tests.support.failures \
    -n "$half" --dist load -vv --tb=short $tests >"$out/tests.txt" 2>&1 &
  for process in $(jobs -p); do wait "$process" || status=1; done
  set +m
  cat "$out"/{doctor,tests,device-check}.txt
  # The run of the tests may have been cut off: what is known by then.
  for word in PASSED FAILED SKIPPED; do echo "$word $(grep -c " $word " "$out/tests.log")"; done
  grep -h '^E  ' "$out/failures.txt" 2>/dev/null | cut -c1-150 | sort | uniq -c | sort -rn | head -n 25
fi
if does time; then
  # shellcheck disable=SC2086
  LINES_SHOWN=80 limited "$((each + 15))" device "$python" -m bench.device --part time --device "$device" --out "$out" \
    --seconds "$each" --rounds "$rounds" $tiny
fi
if does stress; then
  # shellcheck disable=SC2086
  LINES_SHOWN=40 limited 60 verdicts "$python" -m fastcells tune --device "$device" $kinds
  # shellcheck disable=SC2086
  limited 60 stress "$python" -m bench.stress --device "$device" --seconds 30 $tiny
fi
if does tune; then
  # shellcheck disable=SC2086
  limited 400 tune "$python" -m bench.tune --device "$device" --rounds "$rounds" --seconds 360 --out "$out" $tiny
fi
if does table; then
  # shellcheck disable=SC2086
  limited $((limits[0] + 15)) cudnn "$python" -m bench.cudnn --device "$device" --rounds "$rounds" \
    --seconds "${limits[0]}" --out "$out" $tiny
  # A timing that comes too late is dropped, not the others: pytest writes its JSON when it is interrupted, too.
  limited "${limits[1]}" ours "$python" -m pytest bench --device "$device" --selection "$selection" --rounds "$rounds" \
    --contenders "$contenders" --benchmark-json="$out/ours.json" --benchmark-quiet
  LINES_SHOWN=80 limited 30 report "$python" -m bench.report "$out/ours.json" --out "$out" --no-readme
fi
exit $status
