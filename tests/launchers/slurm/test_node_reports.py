"""Each fault that preflight claims to find on nodes, in the reports of ranks."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from launchers.slurm.header import Header
from launchers.slurm.node_reports import judge

VERSIONS = {"python": "3.11.7", "torch": "2.13.0"}
HEADER = Header(Path("x.sub"), {"job-name": "x", "nodes": "2", "ntasks-per-node": "2", "gpus-per-node": "2"})
WHAT = ["ranks", "gpus", "node disk", "node paths", "versions", "clock", "collectives", "numerics", "signals"]


def reports() -> list[dict[str, Any]]:
    """Four ranks on two nodes, with which all is well."""
    return [
        {
            "rank": rank, "node": f"n{1 + rank // 2}", "phase": "ended", "versions": dict(VERSIONS),
            "gpus": ["H100"] * 2, "free_gib": 100.0, "absent": [], "clock": 1000.0 + rank / 1000,
            "gigabytes_per_s": 40.0, "device": f"cuda:{rank % 2}", "signal": "SIGUSR1", "wrong_kernels": [],
        }
        for rank in range(4)
    ]  # fmt: skip


def test_all_is_well() -> None:
    findings = judge(reports(), HEADER, num_ranks=4, versions=VERSIONS)
    assert [finding.what for finding in findings] == WHAT
    assert all(finding.is_well for finding in findings)


@pytest.mark.parametrize(
    "rank, fault, what, words",
    [
        (2, {"gpus": []}, "gpus", "torch sees none at rank 2 on n2"),
        (1, {"gpus": ["H100"] * 3}, "gpus", "another number at rank 1 on n1"),
        (3, {"gpus": ["H100", "A100"]}, "gpus", "different ones: A100, H100"),
        (1, {"free_gib": 0.4}, "node disk", "0 GiB free for runs, as n1 sees it"),
        (2, {"absent": ["data.train: a.jsonl"]}, "node paths", "there is no data.train: a.jsonl on n2"),
        (2, {"versions": {"python": "3.11.7", "torch": "2.12.0"}}, "versions", "torch is 2.13.0 here and 2.12.0 on n2"),
        (3, {"versions": {"python": "3.11.7"}}, "versions", "torch is 2.13.0 here and None on n2"),
        (3, {"clock": 1060.0}, "clock", "n2 is 60.0 s ahead of n1"),
        (1, {"gigabytes_per_s": 0.3}, "collectives", "0.30 GB/s (cuda); expected at least 1"),
        (1, {"gigabytes_per_s": 0.003, "device": "cpu"}, "collectives", "0.00 GB/s (cpu); expected at least 0.02"),
        (2, {"wrong_kernels": [["gelu in bf16", "bf16", "do this"]]}, "numerics", "on n2 gelu in bf16: do this"),
        (2, {"signal": None}, "signals", "did not reach rank 2 on n2"),
        (0, {"phase": "met"}, "signals", "did not reach rank 0 on n1"),
        (3, {"phase": "started"}, "collectives", "did not meet the others: rank 3 on n2"),
    ],
)
def test_every_fault_is_found_where_it_is(rank: int, fault: dict[str, Any], what: str, words: str) -> None:
    damaged = deepcopy(reports())
    damaged[rank] |= fault
    findings = judge(damaged, HEADER, num_ranks=4, versions=VERSIONS)
    (wrong,) = [finding for finding in findings if not finding.is_well]
    assert wrong.what == what
    assert words in wrong.words


def test_ranks_that_never_came() -> None:
    some = judge(reports()[:2], HEADER, num_ranks=4, versions=VERSIONS)
    assert some[0] == ("ranks", False, "of 4 ranks these did not start: 2, 3; those that did are on n1")
    (none,) = judge([], HEADER, num_ranks=4, versions=VERSIONS)
    assert none == ("ranks", False, "of 4 ranks these did not start: 0, 1, 2, 3")
