"""`status`: all runs in one table, or everything about one."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.runfiles import DONE, FAILED, STOP
from launchers.ledger import Link, holder, latest_metrics, newest_step, read_links, state_of
from launchers.results import print_results, summary
from launchers.runs import existing_runs, find_run
from launchers.tables import console, duration, table

COLORS = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "red", "cancelled": "yellow"}
SQUEUE_TIMEOUT_S = 5.0


def slurm_queue(links: list[Link]) -> dict[str, str]:
    """SLURM's state of the jobs among these that it still knows; empty where no SLURM answers."""
    jobs = [link.job_id for link in links if link.submitted.get("cluster") == "slurm" and not link.ended]
    known = [job for job in jobs if job is not None]
    if not known or shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--noheader", "--format=%i %T", "--me"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    states = dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if " " in line)
    return {job: states[job] for job in known if job in states}


def facts(run: Path) -> dict[str, Any]:
    """What `status --json` prints of a run."""
    links = read_links(run)
    metrics = latest_metrics(run)
    queue = slurm_queue(links)
    return {
        **summary(run),
        "state": state_of(run, links, queue=queue),
        "loss": metrics.get("loss"),
        "eta_s": metrics.get("eta_s"),
        "resume_step": newest_step(run),
        "directory": str(run),
        "why": _why(run, links),
        "link_table": [_link_facts(link, queue) for link in links],
    }


def _link_facts(link: Link, queue: Mapping[str, str]) -> dict[str, Any]:
    return {
        "link": link.number,
        "job_id": link.job_id,
        "seed": link.seed,
        "node": link.started.get("host"),
        "first_step": link.started.get("step"),
        "last_step": link.step,
        "exit_code": link.exit_code,
        "outcome": link.outcome or queue.get(link.job_id or "", "").lower() or ("" if link.started else "not started"),
        "time_s": link.wall_s,
        "commit": link.submitted.get("commit"),
        "dirty": link.submitted.get("dirty"),
    }


def _why(run: Path, links: list[Link]) -> str:
    """Why nothing is going on, in words."""
    if (run / DONE).exists():
        return ""
    for marker in (STOP, FAILED):
        if (run / marker).exists():
            return (run / marker).read_text(encoding="utf-8").strip()
    if links and links[-1].ended and not holder(run):
        return f"link {links[-1].number}: {links[-1].outcome}"
    return ""


def show_all(*, as_json: bool) -> None:
    """One row a run."""
    rows = [facts(run) for run in existing_runs()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        print("no run yet; start one: ./launch.sh -n2 recipes/lmu_gigaspeech/demo.sub")
        return
    runs = table("run", "state", "step", "loss", "links", "ETA")
    for row in rows:
        state = f"[{COLORS.get(row['state'], 'default')}]{row['state']}[/]"
        loss = f"{row['loss']:.4g}" if isinstance(row["loss"], float) else ""
        eta = duration(row["eta_s"]) if row["state"] == "running" else ""
        runs.add_row(row["run"], state, f"{row['step']:,}", loss, str(row["links"]), eta)
    console().print(runs)


def show_one(name: str, *, as_json: bool) -> None:
    """Links, state, newest numbers and, once there are scores, the result table."""
    run = find_run(name)
    row = facts(run)
    if as_json:
        print(json.dumps(row, indent=1))
        return
    out = console()
    color = COLORS.get(row["state"], "default")
    out.print(f"run {run.name}: [{color}]{row['state']}[/] at step {row['step']:,} in {run}", soft_wrap=True)
    if row["why"]:
        out.print(row["why"], markup=False)
    newest = [f"loss {row['loss']:.4g}"] if isinstance(row["loss"], float) else []
    if row["state"] == "running" and row["eta_s"] is not None:
        newest.append(f"done in about {duration(row['eta_s'])}")
    if row["time_s"]:
        newest.append(f"{row['train_s'] / row['time_s']:.0%} of the time was training")
    if newest:
        out.print("; ".join(newest), markup=False)
    links = table("link", "job", "steps", "seed", "node", "time", "outcome")
    for link in row["link_table"]:
        ends = ["" if step is None else str(step) for step in (link["first_step"], link["last_step"])]
        steps = " - ".join(ends) if any(ends) else ""
        links.add_row(
            *map(str, (link["link"], link["job_id"] or "", steps, link["seed"], link["node"] or "")),
            duration(link["time_s"]),
            link["outcome"],
        )
    out.print(links)
    if row["scores"]:
        print_results(run)
