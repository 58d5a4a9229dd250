#!/usr/bin/env bash
# Get a node (or several) to debug on, with a shell on the first: there ./run.sh uses the allocation.
#
#   slurm/get_interactive_node.sh [-N nodes] [-G GPUs a node] [-t time] [-p partition]
set -euo pipefail
nodes=1 gpus=1 time=01:00:00 partition=()
while getopts N:G:t:p:h option; do
    case "$option" in
        N) nodes="$OPTARG" ;;
        G) gpus="$OPTARG" ;;
        t) time="$OPTARG" ;;
        p) partition=(--partition "$OPTARG") ;;
        *)
            sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
            exit 85
            ;;
    esac
done
site="$(dirname -- "${BASH_SOURCE[0]}")/cluster.sh"
if [ -f "$site" ]; then
    # shellcheck source=slurm/cluster.example.sh
    source "$site"
fi
if ! command -v salloc >/dev/null; then
    echo "error: no SLURM here (salloc is missing); on this machine use ./run.sh directly" >&2
    exit 85
fi
resources=(--nodes "$nodes" --ntasks-per-node 1 --time "$time" ${partition[@]+"${partition[@]}"})
if [ "$gpus" -gt 0 ]; then resources+=(--gpus-per-node "$gpus"); fi
echo "waiting for $nodes node(s) with $gpus GPU(s) for $time; leave with: exit" >&2
exec salloc "${resources[@]}" srun --nodes 1 --ntasks 1 --overlap --pty "${SHELL:-/bin/bash}"
