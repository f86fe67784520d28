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
  "$python" -m pytest ${TESTS:-tests} 2>&1 | tee "$out/tests.log" | tail -n 25 || status=1
fi
if [ "$part" = all ] || [ "$part" = table ]; then
  "$python" -m bench.charlm --device "$device" --rounds "${ROUNDS:-30}" 2>&1 | tee "$out/charlm.log" || status=1
  "$python" -m bench.layers --device "$device" --rounds "${ROUNDS:-30}" 2>&1 | tee "$out/layers.log" || status=1
  cp "bench/results/charlm-$device.csv" "bench/results/layers-$device.csv" "$out/" 2>/dev/null
fi
exit $status
