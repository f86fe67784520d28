#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, offline, with torch and triton already there: install, test, time.
# Short tables come last; everything is also written under $OUT (default: bench/results/gpu).
# PART=tests|table runs a part. DEVICE=cpu rehearses the script without a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
out=${OUT:-bench/results/gpu}
part=${PART:-all}
keep=$([ "$device" = cuda ] || echo --no-write)  # a rehearsal leaves bench/results alone
mkdir -p "$out"
export PYTHONUNBUFFERED=1

if ! "$python" - "$device" <<'PY'
import sys
import torch
print("torch", torch.__version__, "cuda", torch.cuda.is_available())
sys.exit(sys.argv[1] == "cuda" and not torch.cuda.is_available())
PY
then
  echo "no CUDA device: DEVICE=cpu rehearses this script without one" >&2
  exit 1
fi
"$python" -m pip install --quiet --no-deps --no-build-isolation -e . || exit 1

status=0
if [ "$part" = all ] || [ "$part" = tests ]; then
  # The package's own table of errors first: a kernel that is wrong or does not launch shows within a minute.
  "$python" -m fastcells doctor 2>&1 | tee "$out/doctor.log" || status=1
  # shellcheck disable=SC2086  # TESTS may name several files
  "$python" -m pytest ${TESTS:-tests} 2>&1 | tee "$out/tests.log" | tail -n 25 || status=1
fi
if [ "$part" = all ] || [ "$part" = table ]; then
  for impl in ${IMPLS:-auto triton triton-step}; do
    for table in charlm layers; do
      echo "== $table $impl"
      # shellcheck disable=SC2086  # keep is one option or none
      "$python" -m "bench.$table" --device "$device" --rounds "${ROUNDS:-30}" --impl "$impl" $keep 2>&1 |
        tee "$out/$table-$impl.log" || status=1
    done
  done
  cp bench/results/*-cuda*.csv "$out/" 2>/dev/null
fi
exit $status
