"""`status`: all runs in one table, or everything about one."""

import json
from typing import Any

from launchers.runs import existing_runs, find_run
from launchers.show.results import print_summary
from launchers.show.run_facts import facts_of
from launchers.show.tables import colored, console, duration, print_list

COLORS = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "red", "cancelled": "yellow"}


def show_all(*, as_json: bool) -> None:
    """Print one row a run."""
    rows = facts_of(existing_runs())
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        print("no run yet; start one: ./launch.sh -n2 recipes/lmu_gigaspeech/demo.sub")
        return
    lines = []
    for row in rows:
        loss = f"{row['loss']:.4g}" if isinstance(row["loss"], float) else ""
        eta = duration(row["eta_s"]) if row["state"] == "running" else ""
        lines.append([row["run"], row["state"], f"{row['step']:,}", loss, str(row["links"]), eta])
    print_list(["run", "state", "step", "loss", "links", "ETA"], lines, colors=COLORS, gives_way="run")


def _state(row: dict[str, Any]) -> str:
    return colored(row["state"], COLORS.get(row["state"]))


def show_one(name: str, *, as_json: bool) -> None:
    """Print links, state, newest numbers and, once there are scores, the result table."""
    run = find_run(name)
    (row,) = facts_of([run])
    if as_json:
        print(json.dumps(row, indent=1))
        return
    out = console()
    out.print(f"run {run.name}: {_state(row)} at step {row['step']:,} in {run}", soft_wrap=True)
    if row["why"]:
        out.print(row["why"], markup=False)
    newest = [f"loss {row['loss']:.4g}"] if isinstance(row["loss"], float) else []
    if row["state"] == "running" and row["eta_s"] is not None:
        newest.append(f"done in about {duration(row['eta_s'])}")
    if row["training_time_ratio"] is not None:
        newest.append(f"effective training time {row['training_time_ratio']:.0%}")
    if newest:
        out.print("; ".join(newest), markup=False)
    lines = []
    for link in row["link_table"]:
        steps = " - ".join(str(step) for step in (link["first_step"], link["last_step"]) if step is not None)
        ratio = link["training_time_ratio"]
        job, seed, node = ("" if link[key] is None else str(link[key]) for key in ("job_id", "seed", "node"))
        time, node = duration(link["time_s"]), node.partition(".")[0]
        lines.append([str(link["link"]), job, steps, seed, node, time, "" if ratio is None else f"{ratio:.0%}"])
    print()
    print_list(["link", "job", "steps", "seed", "node", "time", "train"], lines, colors={}, gives_way="node")
    print()
    for link in row["link_table"]:
        if link["outcome"]:
            print(f"link {link['link']}: {link['outcome']}")
    if row["scores"]:
        print_summary(row)
