#!/usr/bin/env bash
# Every figure of one NVIDIA GPU in one call, in less than 8 minutes: JSON lines and a
# table of them, with the device and the versions.
#
#   pip install 'jax[cuda13]' -e '.[peers]'    (with a torch for the GPU)
#   benchmarks/gpu.sh [FOLDER]                 by default reports/results/gpu
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-reports/results/gpu}
mkdir -p "$folder"
# torch needs some of the memory too.
export XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=2
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || exit 1

failed=0
# measure NAME SECONDS ARGUMENTS...: at most so long; what is done by then is kept.
measure() {
  local name=$1 limit=$2
  shift 2
  echo "== $name (at most $limit s)"
  if timeout "$limit" python "$@" > "$folder/$name.jsonl" 2> "$folder/$name.log"; then
    rm "$folder/$name.log"
  else
    echo "$name ended early, with status $?:"
    tail -5 "$folder/$name.log"
    failed=1
  fi
  cat "$folder/$name.jsonl"
}
measure error 40 benchmarks/gpu_error.py
measure attention 180 benchmarks/gpu_attention.py
measure million 120 benchmarks/gpu_training.py million
measure training 130 benchmarks/gpu_training.py peers
python reports/gpu.py "$folder" | tee "$folder/README.md"
exit $failed
