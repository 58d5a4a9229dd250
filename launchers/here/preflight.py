"""`preflight`: would this .sub file work here? Checks that cost seconds, before a job that costs days."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from core.rundir.exit_codes import ExitCode
from launchers.here.machine import num_cores, slurm_answers
from launchers.here.preflight_here import config, machine, script
from launchers.show.tables import colored, console, table
from launchers.slurm.header import Header, HeaderError, read_header
from launchers.slurm.node_reports import PreflightFinding


def preflight(sub: Path, *, overrides: list[str], only_here: bool, wait_s: float) -> int:
    """Print one row a check; 0 if all is well. `wait_s`: how long SLURM may take to start the check of the nodes."""
    findings: list[PreflightFinding] = []
    header: Header | None = None
    try:
        header = read_header(sub)
        findings.append(PreflightFinding("header", True, f"{header.job_name}: {_resources(header)}"))
    except OSError as error:
        findings.append(PreflightFinding("header", False, f"{sub}: {error.strerror}"))
    except HeaderError as error:
        findings += [PreflightFinding("header", False, problem) for problem in error.problems]
    findings += machine()
    if header is not None:
        resolved, paths, precision = config(header, overrides)
        findings += [*script(header), *resolved]
        findings += _cluster(header, paths, precision, only_here=only_here, wait_s=wait_s)
    shown = table("check", "", "finding")
    for what, is_well, words in findings:
        shown.add_row(what, colored("ok", "green") if is_well else colored("NO", "red"), words.replace("[", "\\["))
    console().print(shown)
    return int(ExitCode.DONE if all(finding.is_well for finding in findings) else ExitCode.CONFIG)


def _resources(header: Header) -> str:
    limit = header.options.get("time", "no limit")
    gpus = f", {header.gpus_per_node} GPUs a node" if header.gpus_per_node else ""
    return f"{header.num_nodes} x {header.tasks_per_node} ranks{gpus}, time {limit}"


def _cluster(
    header: Header, paths: Mapping[str, str], precision: str, *, only_here: bool, wait_s: float
) -> Iterator[PreflightFinding]:
    """Check where links would run, and what is to be found there. `paths`: those that must be there too, by key."""
    is_slurm = slurm_answers()
    words = "SLURM answers" if is_slurm else f"no SLURM answers: links would run here, on {num_cores()} cores"
    yield PreflightFinding("cluster", True, words)
    if only_here:
        yield PreflightFinding("nodes", True, "left out, as asked")
        return
    from launchers.slurm.node_check import check_nodes

    if is_slurm:
        print(f"checking the nodes with a short job (at most {wait_s:.0f} s in the queue) ...", file=sys.stderr)
    cluster = "slurm" if is_slurm else "local"
    yield from check_nodes(header, paths, cluster=cluster, wait_s=wait_s, precision=precision)
