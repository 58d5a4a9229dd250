#!/usr/bin/env bash
# Run a recipe here and now, without a chain:
#
#   ./run.sh recipes/lmu_gigaspeech [--config FILE] [key=value ...]
#   ./run.sh check                      can Baton run here? one line a fact, and what to do about it
#   ./run.sh bench                      all of tests/bench, written to tests/bench/results.md
#
# NPROC=2 ranks (default: one a GPU, else 1), DEBUG=1 for one tiny pass, PROFILE=1 for a trace of a few steps.
# It ends with 75 if the run is unfinished: the same command goes on where it stopped.
set -euo pipefail
if [ $# -eq 0 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 0
fi
baton_here="$PWD" baton_needs=""
if [ "$1" = bench ]; then baton_needs=dev; fi
# shellcheck source=launchers/bootstrap.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/launchers/bootstrap.sh"
export BATON_LOCAL_TASKS="${NPROC:-$(python -P -m launchers.here.machine)}"
if [ "$BATON_LOCAL_TASKS" = 0 ]; then BATON_LOCAL_TASKS=1; fi
if ! [[ "$BATON_LOCAL_TASKS" =~ ^[1-9][0-9]*$ ]]; then
    echo "error: NPROC=$BATON_LOCAL_TASKS: expected a number of ranks, at least 1" >&2
    exit 85
fi

if [ "$1" = check ]; then
    export BATON_RUNS="${BATON_RUNS:-$baton_root/runs}"
    exec python -P -m launchers.here.check
fi
if [ "$1" = bench ]; then
    cd "$baton_root"
    exec python -m tests.bench.results
fi

recipe="$(basename -- "$1")"
shift
if [ ! -f "$baton_root/recipes/$recipe/train.py" ]; then
    echo "error: no recipe '$recipe'; there are:" >&2
    find "$baton_root/recipes" -mindepth 2 -maxdepth 2 -name train.py | sed 's|.*/\(recipes/.*\)/train.py|  \1|' | sort >&2
    exit 85
fi
arguments=()
while [ $# -gt 0 ]; do
    if [ "$1" = --config ] && [ $# -gt 1 ]; then
        arguments+=(--config "$(cd -- "$baton_here" && realpath -- "$2")")
        shift
    else
        arguments+=("$1")
    fi
    shift
done
if [ -n "${DEBUG:-}" ]; then arguments+=(run.debug=true); fi
if [ -n "${PROFILE:-}" ]; then arguments+=(run.profile=true); fi

# shellcheck source=slurm/env.sh
source "$baton_root/slurm/env.sh"
trap - TERM USR1 USR2
baton_ranks python -m "recipes.$recipe.train" ${arguments[@]+"${arguments[@]}"}
exec "${baton_command[@]}" # so that every signal reaches the ranks
