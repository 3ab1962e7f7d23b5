#!/usr/bin/env bash
# The tables of docs/scale.md: 14 programs, compiled for virtual devices, which takes six
# minutes of a core, or more where others work.
#   bash benchmarks/scale.sh
set -euo pipefail
cd "$(dirname "$0")/.."
row() { python benchmarks/plan.py --markdown "$@" | tail -n +3; }
paper=--config=configs/enwik8.py
million=--config=configs/enwik8.py:million

# The batch of 8 sequences, each device one at a time.
python benchmarks/plan.py --markdown $paper --mesh=data=1 --config.accumulate=8
row $paper --mesh=data=2 --config.accumulate=4
row $paper --mesh=data=4 --config.accumulate=2
row $paper --mesh=data=8 --mesh=fsdp=8 --mesh=data=2,fsdp=4 --mesh=model=8 \
  --mesh=sequence=8
echo
# One sequence.
python benchmarks/plan.py --markdown $million --mesh=sequence=1 --mesh=sequence=2 \
  --mesh=sequence=4 --mesh=sequence=8 --mesh=model=8
row $million --mesh=ring=8 --config.model.heads_at_once=1
