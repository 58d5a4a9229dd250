#!/usr/bin/env bash
# Every check that CI runs; what follows goes to pytest: ./test.sh tests/launchers -k chain
set -euo pipefail
baton_needs=dev
source "$(dirname -- "${BASH_SOURCE[0]}")/launchers/bootstrap.sh"
cd "$baton_root"

echo "== ruff"
python -m ruff check .
python -m ruff format --check .
echo "== mypy"
python -m mypy
echo "== shellcheck"
find . -path ./.venv -prune -o -path ./runs -prune -o -type f \( -name '*.sh' -o -name '*.sub' -o -path './.ci/run' \) -print0 |
    xargs -0 shellcheck --external-sources
echo "== pytest"
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 # two workers on two cores; and forked ranks hang on a thread pool
python -m pytest -n "${BATON_TEST_WORKERS:-2}" "$@"
if [ "$#" -eq 0 ]; then
    echo "== pytest of numerics, with kernels of older processors"
    export ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2
    exec python -m pytest -n "${BATON_TEST_WORKERS:-2}" -m 'numerics and not slow and not gpu'
fi
