"""`launch` and `extend`: from what a person typed to a chain of links."""

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path

from core.runfiles import CONFIG, DONE, FAILED, STOP, ExitCode, runs_root
from launchers.header import HeaderError, read_header
from launchers.ledger import Link, holder, newest_step, read_links
from launchers.machine import slurm_answers
from launchers.results import print_results
from launchers.runs import LaunchError, checked, find_run
from launchers.status import slurm_queue

OVERRIDE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=.*", re.DOTALL)
SEED = "run.seed"
LARGEST_SEED = 2**32 - 1


@dataclass
class Wish:
    """What was typed."""

    sub: Path
    overrides: list[str]
    num_links: int = 1
    seed: int | None = None
    run: str | None = None
    cluster: str | None = None
    after: str | None = None
    is_dry: bool = False


def extend(name: str, *, num_links: int, overrides: list[str], cluster: str | None) -> int:
    """More links for a run, as it was launched before; lifts a cancellation."""
    run = find_run(name)
    argv = next((link.submitted["argv"] for link in reversed(read_links(run)) if "argv" in link.submitted), None)
    if not argv:
        raise LaunchError(f"run {name} was not launched by ./launch.sh; use: ./launch.sh --run {name} FILE.sub")
    (run / STOP).unlink(missing_ok=True)
    return launch(Wish(Path(argv[0]), overrides, num_links=num_links, run=name, cluster=cluster))


def launch(wish: Wish) -> int:
    """Queue or do the links of a run; the exit code."""
    try:
        header = read_header(wish.sub)
    except FileNotFoundError:
        raise LaunchError(f"no such file: {wish.sub}") from None
    except HeaderError as error:
        raise LaunchError("\n".join(error.problems)) from None
    header = replace(header, path=wish.sub.absolute())  # jobs start in the repository
    name = checked(wish.run or header.job_name)
    directory = runs_root() / name
    if (directory / DONE).exists():
        print(f"run {name} is done: nothing to do (--run NAME starts another)")
        print_results(directory)
        return int(ExitCode.DONE)
    if (directory / STOP).exists():
        because = (directory / STOP).read_text(encoding="utf-8").strip()
        raise LaunchError(f"run {name} was {because}; go on with: ./launch.sh extend {name} -n {wish.num_links}")
    links = read_links(directory)
    overrides = _overrides(wish, links)
    seed_base = _seed_base(wish, links, directory, overrides)
    cluster = wish.cluster or ("slurm" if slurm_answers() else "local")
    after = _after(wish, links, directory, cluster)

    # Late, because submitit is slow to import and wants nothing above.
    from launchers.chain import next_link, queue_on_slurm, work_here
    from launchers.submission import Run, submission_text

    run = Run(directory, header, overrides, seed_base, cluster)  # type: ignore[arg-type]
    where = {"slurm": "on SLURM", "local": "on this machine", "debug": "in this terminal"}[cluster]
    resumed = f", going on from step {newest_step(directory):,}" if links else ""
    links_asked = "1 link" if wish.num_links == 1 else f"{wish.num_links} links"
    print(f"run {name} {where}: {links_asked} in {directory}{resumed}", flush=True)
    if wish.is_dry:
        first = next_link(directory)
        for link in range(first, first + wish.num_links):
            print(f"---- link {link}, seed {run.seed(link)}")
            print(submission_text(run, link, after=after) if cluster == "slurm" else run.command(link))
            after = f"<job of link {link}>"
        return int(ExitCode.DONE)
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / FAILED).exists():
        print(f"it had failed: {(directory / FAILED).read_text(encoding='utf-8').strip()}; trying again")
        (directory / FAILED).unlink()
    if cluster == "slurm":
        return queue_on_slurm(run, wish.num_links, after=after)
    return work_here(run, wish.num_links)


def _overrides(wish: Wish, links: list[Link]) -> list[str]:
    """What this launch sets, on top of what the run's last link had: one value a key, the later one."""
    for word in wish.overrides:
        if not OVERRIDE.fullmatch(word):
            raise LaunchError(f"{word!r}: expected key=value, e.g. optim.lr=3e-4")
        if word.startswith("run.name="):
            raise LaunchError(f"{word}: name a run with --run {word.partition('=')[2]}")
    if wish.seed is not None and not 0 <= wish.seed <= LARGEST_SEED:
        raise LaunchError(f"--seed {wish.seed}: expected 0 to {LARGEST_SEED}")
    earlier = links[-1].submitted.get("argv", [])[2:] if links else []  # without the .sub and run.name=
    seed = [] if wish.seed is None else [f"{SEED}={wish.seed}"]
    merged: dict[str, str] = {}
    for word in [*earlier, *seed, *wish.overrides]:
        key, _, value = word.partition("=")
        if key == SEED and merged.get(SEED, value) != value:
            raise LaunchError(f"{SEED}={value}: the seed is {merged[SEED]} already; --run NAME starts another run")
        merged[key] = value
    kept = [word for word in earlier if word not in wish.overrides]
    if kept:
        print(f"as link {links[-1].number}: {' '.join(kept)}")
    return [f"{key}={value}" for key, value in merged.items()]


def _seed_base(wish: Wish, links: list[Link], directory: Path, overrides: list[str]) -> int | str:
    """What link seeds derive from: as before, else the run's seed, else (the recipe has its own default) its name."""
    known = next((link.submitted["seed_base"] for link in links if "seed_base" in link.submitted), None)
    given = next((word.partition("=")[2] for word in overrides if word.startswith(f"{SEED}=")), None)
    if given is not None and not given.isdigit():
        raise LaunchError(f"{SEED}={given}: expected a number from 0 to {LARGEST_SEED}")
    configured = _configured_seed(directory)
    if given is not None and configured is not None and int(given) != configured:
        raise LaunchError(f"{SEED}={given}: run {directory.name} has seed {configured}; --run NAME starts another run")
    if known is not None:
        return known
    if given is not None:
        return int(given)
    return directory.name if configured is None else configured


def _configured_seed(directory: Path) -> int | None:
    """`run.seed` in the run's own config.yaml, where the run has got that far."""
    path = directory / CONFIG
    if not path.exists():
        return None
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        seed = config["run"]["seed"]
    except (yaml.YAMLError, KeyError, TypeError):
        return None
    return seed if isinstance(seed, int) else None


def _after(wish: Wish, links: list[Link], directory: Path, cluster: str) -> str | None:
    """The job that the first link waits for: the one named, else the run's last one still in SLURM's queue."""
    if wish.after is not None:
        if cluster != "slurm":
            raise LaunchError(f"--after {wish.after}: only SLURM has a queue, and none answers")
        if not wish.after.isdigit():
            raise LaunchError(f"--after {wish.after}: expected the number of a job")
        return wish.after
    queued = slurm_queue(links)
    if queued and cluster == "slurm":
        return max(queued, key=int)
    lease = holder(directory)
    if queued or lease:
        who = f"job {lease['job_id']} on {lease['host']}" if lease else f"{len(queued)} queued jobs"
        message = f"run {directory.name} is in use by {who}; wait, or: ./launch.sh cancel {directory.name}"
        raise LaunchError(message, exit_code=ExitCode.LEASE)
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `launch`."""
    parser.add_argument("sub", metavar="FILE.sub", type=Path, help="a sbatch script with its #SBATCH lines")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over the recipe's config")
    parser.add_argument("-n", dest="num_links", type=_positive, default=1, metavar="N", help="links (default 1)")
    parser.add_argument("--seed", type=int, metavar="S", help="the run's seed (default: the recipe's own)")
    parser.add_argument("--run", metavar="NAME", help="name of the run (default: the job name)")
    parser.add_argument("--cluster", choices=["slurm", "local", "debug"], help="default: slurm where one answers")
    parser.add_argument("--after", metavar="JOBID", help="SLURM job that the first link waits for")
    parser.add_argument("--dry-run", dest="is_dry", action="store_true", help="print the submissions, do nothing")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1")
    return number
