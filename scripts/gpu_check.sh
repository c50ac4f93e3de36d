#!/usr/bin/env bash
# What a GPU makes of nerf, in one command of ten minutes at most: bash scripts/gpu_check.sh --data DIR [--out FILE.json]
#
# Correctness of every CUDA op against the float64 reference, the march to the bit, --deterministic, compute-sanitizer on a
# small run; then how fast: single kernels, training, views, mesh, a step kernel by kernel, steps as CUDA graphs, tinycudann
# where it is installed; one JSON under scripts/results/. What crashes or hangs costs its own part of it. Needs no network
# and no pip: torch >= 2.10 with CUDA, cuda-bindings (part of cuda-core), numpy, pillow, safetensors and rich must be there;
# the CPU library is built with the g++ that is found.
#   DIR           holds lego/ (Blender format), and fox.safetensors where 1080p views of fox are to be timed (with --only
#                 views it need not hold lego)
#   PYTHON        the interpreter (default: python3)
#   --only NAME   one section alone; --only tuning tries other batch sizes and settings, and names the best
#   --dry-run     all of it in tiny sizes on an emulated GPU, to rehearse
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || { printf 'gpu_check: %s is not there: set PYTHON\n' "$python" >&2; exit 2; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" scripts/gpu_check.py "$@" --only nothing # says what is missing, before anything is built
"$python" nerf/kernels/build.py || printf 'gpu_check: no CPU library, so the march is compared with the reference\n' >&2
exec "$python" scripts/gpu_check.py "$@"
