"""What the ranks of a preflight found on their nodes, judged: each fault with the node or ranks that it belongs to."""

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from launchers.here.check import LEAST_FREE_GIB
from launchers.slurm.header import Header

LISTENED_TO = ("SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT")  # by the ranks
LARGEST_CLOCK_DIFFERENCE_S = 2.0
LEAST_GIGABYTES_PER_S = {"cuda": 1.0, "cpu": 0.02}  # below, ranks wait for one another more than they compute


class PreflightFinding(NamedTuple):
    """One row of the table of `preflight`."""

    what: str
    is_well: bool
    words: str


Report = Mapping[str, Any]


def judge(
    reports: Sequence[Report], header: Header, *, num_ranks: int, versions: Mapping[str, str]
) -> list[PreflightFinding]:
    """Judge every fact that the reports tell. `versions`: of the packages here, where the job was submitted."""
    found = [_ranks(reports, num_ranks)]
    if not reports:
        return found
    found += [_gpus(reports, header), _disk(reports), _paths(reports), _versions(reports, versions)]
    met = [report for report in reports if report["phase"] != "started"]
    if len(met) == num_ranks:
        found += [_clock(met), _bandwidth(met), _numerics(met), _signal(met)]
    else:
        late = _names(reports, lambda report: report["phase"] == "started")
        found.append(
            PreflightFinding("collectives", False, f"these ranks started, but did not meet the others: {late}")
        )
    return found


def _names(reports: Sequence[Report], is_meant: Callable[[Report], bool]) -> str:
    return ", ".join(f"rank {one['rank']} on {one['node']}" for one in reports if is_meant(one))


def _ranks(reports: Sequence[Report], num_ranks: int) -> PreflightFinding:
    nodes = sorted({report["node"] for report in reports})
    missing = sorted(set(range(num_ranks)) - {report["rank"] for report in reports})
    if missing:
        ranks = ", ".join(map(str, missing))
        heard = f"; those that did are on {', '.join(nodes)}" if nodes else ""
        return PreflightFinding("ranks", False, f"of {num_ranks} ranks these did not start: {ranks}{heard}")
    return PreflightFinding("ranks", True, f"{num_ranks} started, on {', '.join(nodes)}")


def _gpus(reports: Sequence[Report], header: Header) -> PreflightFinding:
    if not header.gpus_per_node:
        return PreflightFinding("gpus", True, "none asked for")
    blind = _names(reports, lambda report: not report["gpus"])
    if blind:
        return PreflightFinding(
            "gpus", False, f"{header.gpus_per_node} a node are asked for, but torch sees none at {blind}"
        )
    kinds = sorted({name for report in reports for name in report["gpus"]})
    few = _names(reports, lambda report: len(report["gpus"]) not in (1, header.gpus_per_node))
    if few:
        return PreflightFinding(
            "gpus", False, f"{header.gpus_per_node} a node are asked for; torch sees another number at {few}"
        )
    if len(kinds) > 1:
        return PreflightFinding("gpus", False, f"the nodes have different ones: {', '.join(kinds)}")
    return PreflightFinding("gpus", True, f"{header.gpus_per_node} a node: {kinds[0]}")


def _disk(reports: Sequence[Report]) -> PreflightFinding:
    least = min(reports, key=lambda report: report["free_gib"])
    words = f"{least['free_gib']:.0f} GiB free for runs, as {least['node']} sees it"
    is_enough = least["free_gib"] >= LEAST_FREE_GIB
    return PreflightFinding(
        "node disk", is_enough, words if is_enough else f"{words}; at least {LEAST_FREE_GIB:.0f} are wanted"
    )


def _paths(reports: Sequence[Report]) -> PreflightFinding:
    nodes: dict[str, set[str]] = {}
    for report in reports:
        for absent in report["absent"]:
            nodes.setdefault(absent, set()).add(report["node"])
    absent = [f"{path} on {', '.join(sorted(where))}" for path, where in nodes.items()]
    words = f"there is no {'; no '.join(absent)}" if absent else "nothing that the data section names is missing"
    return PreflightFinding("node paths", not absent, words)


def _versions(reports: Sequence[Report], here: Mapping[str, str]) -> PreflightFinding:
    differences = []
    for name, version in here.items():
        others: dict[str, str] = {}
        for report in reports:
            if (found := report["versions"].get(name)) != version:
                others[report["node"]] = str(found)
        differences += [f"{name} is {version} here and {found} on {node}" for node, found in others.items()]
    return PreflightFinding("versions", not differences, "; ".join(differences) or "the same here and on the nodes")


def _clock(reports: Sequence[Report]) -> PreflightFinding:
    first, last = (choose(reports, key=lambda report: report["clock"]) for choose in (min, max))
    apart_s = last["clock"] - first["clock"]
    if apart_s > LARGEST_CLOCK_DIFFERENCE_S:
        return PreflightFinding("clock", False, f"{last['node']} is {apart_s:.1f} s ahead of {first['node']}")
    return PreflightFinding("clock", True, f"the nodes agree within {max(apart_s, 0.001):.3f} s")


def _bandwidth(reports: Sequence[Report]) -> PreflightFinding:
    if len(reports) == 1:
        return PreflightFinding("collectives", True, "a rank alone needs none")
    slowest = min(reports, key=lambda report: report["gigabytes_per_s"])
    speed, kind = slowest["gigabytes_per_s"], slowest["device"].split(":")[0]
    least = LEAST_GIGABYTES_PER_S.get(kind, 0.0)
    words = f"all-reduce of 16 MiB over {len(reports)} ranks: {speed:.2f} GB/s ({kind})"
    return PreflightFinding(
        "collectives", speed >= least, words if speed >= least else f"{words}; expected at least {least:g}"
    )


def _numerics(reports: Sequence[Report]) -> PreflightFinding:
    nodes: dict[str, set[str]] = {}
    for report in reports:
        for kernel, _, advice in report["wrong_kernels"]:
            nodes.setdefault(f"{kernel}: {advice}", set()).add(report["node"])
    wrong = [f"on {', '.join(sorted(where))} {words}" for words, where in nodes.items()]
    return PreflightFinding("numerics", not wrong, "; ".join(wrong) or "kernels of the recipes agree with float64")


def _signal(reports: Sequence[Report]) -> PreflightFinding:
    deaf = _names(reports, lambda report: report["phase"] != "ended" or not report["signal"])
    if deaf:
        return PreflightFinding("signals", False, f"a stop signal was sent and did not reach {deaf}")
    return PreflightFinding("signals", True, f"every rank got {reports[0]['signal']}")


def signal_name(text: str) -> str:
    """Return `USR1`, `SIGUSR1` or `10` as `SIGUSR1`."""
    try:
        return signal.Signals(int(text)).name
    except ValueError:  # no number, or that of no signal
        return f"SIG{text.removeprefix('SIG')}"
