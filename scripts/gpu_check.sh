#!/usr/bin/env bash
# What a GPU makes of nerf, in one command of eight minutes at most: bash scripts/gpu_check.sh --data DIR [--out FILE.json]
#
# Correctness of every CUDA op against the float64 reference, the march to the bit, --deterministic; then how fast: single
# kernels, steps one by one and as CUDA graphs, training (lego, 2.5 to 60 s), a step kernel by kernel, views, mesh, tinycudann
# where it is installed; at last compute-sanitizer on small sizes. One JSON, written after every part, in the folder OUT
# where that is set and else in scripts/results. What crashes or hangs costs its own part; what no time is left for is left
# out, and said to be. Needs no network and no pip: torch with CUDA 12 or 13 (whose NVRTC it takes), numpy, pillow,
# imageio, safetensors and rich must be there. The CPU library is built where there is a g++; else the march is compared with
# the reference.
#   DIR           holds lego/ (Blender format; 25 test views do), and fox.safetensors where 1080p views of fox are to be
#                 timed (with --only views it need not hold lego)
#   PYTHON        the interpreter (default: python3)
#   --seconds N   for all of it (default 470)
#   --only NAME   one section alone; --only tuning tries other batch sizes and settings, and names the best
#   --dry-run     all of it in tiny sizes on an emulated GPU, to rehearse; without a compiler on the reference
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || { printf 'gpu_check: %s is not there: set PYTHON\n' "$python" >&2; exit 2; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" scripts/gpu_check.py "$@" --only nothing # says what is missing, before anything is built
"$python" nerf/kernels/build.py || printf 'gpu_check: no CPU library, so the march is compared with the reference\n' >&2
exec "$python" scripts/gpu_check.py "$@"
