#!/usr/bin/env bash
# Train the quickstart example twice in a fresh directory and look at what was recorded. `make demo`
# runs it with `python` and `replicate` of its own environment on the PATH. Leaves nothing behind.
set -euo pipefail

examples=$(cd "$(dirname "${BASH_SOURCE[0]}")/../examples" && pwd)
workspace=$(mktemp -d)
trap 'rm -rf "$workspace"' EXIT
unset "${!REPLICATE_@}"
export XDG_CACHE_HOME="$workspace/cache"
cp -R "$examples/quickstart" "$workspace/digits"
cd "$workspace/digits"

say() { printf '\n\n# %s\n' "$*"; }
run() { printf '\n$ %s\n' "$*"; "$@"; }

say 'Train a model twice, with different params. Two lines of train.py call Replicate.'
run grep -n experiment train.py
run python train.py
run python train.py --learning_rate=0.05 --hidden_units=16

say 'Every run is an experiment.'
run replicate ls

ids=$(replicate ls --quiet)
first=$(sed -n '1s/^\(.......\).*/\1/p' <<<"$ids")
second=$(sed -n '2s/^\(.......\).*/\1/p' <<<"$ids")

say 'An experiment has checkpoints; the best is not always the last.'
run replicate show "$second"

say 'What is different between the two?'
run replicate diff "$first" "$second"

say 'Get the code and the model of the best checkpoint back.'
run replicate checkout "$second" -o best
run ls best
run diff -s train.py best/train.py

say 'All of it is plain files.'
run ls .replicate
run find .replicate/experiments -type f
run du -sh .replicate
