"""`completion`: a script for the shell that completes commands, options, runs and .sub files.

source <(./launch.sh completion bash)      in ~/.bashrc, with the path of launch.sh
source <(./launch.sh completion zsh)       in ~/.zshrc
"""

from collections.abc import Mapping, Sequence

from core.rundir.files import LEDGER, SWEEP
from launchers.here.environment import ROOT

# What may follow each command: RUN, SWEEP and FILE stand for names, the rest are options.
WORDS: Mapping[str, Sequence[str]] = {
    "": ("FILE", "-n", "--seed", "--run", "--cluster", "--after", "--live", "--keep-queued", "--dry-run", "--help"),
    "status": ("RUN", "--json"),
    "logs": ("RUN", "-f", "--link"),
    "cancel": ("RUN", "SWEEP"),
    "extend": ("RUN", "-n", "--cluster", "--live"),
    "compare": ("RUN", "SWEEP", "--picture", "--json"),
    "sweep": ("FILE", "-n", "--seed", "--run", "--cluster", "--after", "--live", "--keep-queued", "--dry-run"),
    "bench": ("ab", "sweep", "both", "summarize", "diagnose", "--config", "--check"),
    "preflight": ("FILE", "--here", "--wait"),
    "completion": ("bash", "zsh"),
}
VALUES = {"--cluster": "slurm local debug"}

BASH = """\
_baton_launch() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD - 1]}}" command="" words="" one
    COMPREPLY=()
    for one in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$one" in {commands}) command="$one" && break ;; esac
    done
    case "$before" in
{values}
    esac
    case "$command" in
{cases}
    esac
    for one in $words; do
        case "$one" in
        RUN | SWEEP)
            local run file={ledger}
            if [ "$one" = SWEEP ]; then file={sweep}; fi
            for run in "${{BATON_RUNS:-{root}/runs}}"/*/; do
                run="${{run%/}}"
                if [ -e "$run/$file" ]; then
                    run="${{run##*/}}"
                    case "$run" in "$word"*) COMPREPLY+=("$run") ;; esac
                fi
            done
            ;;
        FILE)
            local file
            while IFS= read -r file; do
                if [ -d "$file" ]; then
                    COMPREPLY+=("$file/")
                else
                    case "$file" in *.sub | *pipeline*.yaml) COMPREPLY+=("$file") ;; esac
                fi
            done < <(compgen -f -- "$word")
            ;;
        *)
            case "$one" in "$word"*) COMPREPLY+=("$one") ;; esac
            ;;
        esac
    done
    case "${{COMPREPLY[0]-}}" in */) compopt -o nospace 2>/dev/null ;; esac
    return 0
}}
complete -F _baton_launch launch.sh ./launch.sh {root}/launch.sh
"""

ZSH = "autoload -Uz compinit bashcompinit && compinit -u && bashcompinit\n"


def completion_script(shell: str) -> str:
    """Return the script for bash, or for zsh, which understands bash's."""
    commands = [command for command in WORDS if command]
    cases = "\n".join(
        f'    {command or chr(34) * 2}) words="{" ".join([*words, *([] if command else commands)])}" ;;'
        for command, words in WORDS.items()
    )
    values = "\n".join(f'    {option}) command=value words="{words}" ;;' for option, words in VALUES.items())
    script = BASH.format(
        commands=" | ".join(commands), cases=cases, values=values, root=ROOT, ledger=LEDGER, sweep=SWEEP
    )
    return ZSH + script if shell == "zsh" else script
