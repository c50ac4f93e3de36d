#!/usr/bin/env bash
# Makes .venv if needed, installs nerf with what the tests need, and runs them: bash scripts/test.sh [arguments of pytest]
# PYTHON, TORCH_SPEC and PIP_EXTRA_INDEX: see scripts/environment.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "dev,capture,exr,ct,view,maps"
prepare_browser
cd "$ROOT"
# a process for each core with one thread each: most of a test is Python, which uses one
exec env OMP_NUM_THREADS=1 "$VENV_PYTHON" -m pytest -n auto --dist worksteal "$@"
