#!/usr/bin/env bash
# From a fresh clone to a field, a video and a mesh of the bundled scene: bash scripts/demo.sh [OUT]
# Makes .venv if needed. DEMO_MINUTES is the training time (default 2); for PYTHON, TORCH_SPEC and PIP_EXTRA_INDEX see
# scripts/environment.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment ""
out=${1:-}
if [ -z "$out" ]; then # a new folder each time: nothing is overwritten
    out=$ROOT/runs/demo
    for ((i = 2; ; i++)); do
        [ -e "$out" ] || break
        out=$ROOT/runs/demo-$i
    done
fi
say "reconstructing data/sample (${DEMO_MINUTES:-2} minutes of training)"
exec "$VENV/bin/nerf" reconstruct "$ROOT/data/sample" -o "$out" --minutes "${DEMO_MINUTES:-2}"
