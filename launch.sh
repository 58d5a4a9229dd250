#!/usr/bin/env bash
# Launch a run as a chain of consecutive jobs, or look after one: ./launch.sh --help
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/launchers/bootstrap.sh"
export BATON_RUNS="${BATON_RUNS:-$baton_root/runs}"
exec python -P -m launchers "$@"
