"""What a person typed to launch a run, checked against what the run has been so far."""

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

from core.rundir.files import CONFIG
from core.rundir.ledger import LinkRecord
from launchers.runs import LaunchError

OVERRIDE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=.*", re.DOTALL)
SEED = "run.seed"
LARGEST_SEED = 2**32 - 1


@dataclass
class LaunchRequest:
    """The words and options of `./launch.sh FILE.sub`."""

    sub: Path
    overrides: list[str] = field(default_factory=list)
    num_links: int = 1
    seed: int | None = None
    run: str | None = None
    cluster: str | None = None
    after: str | None = None
    is_live: bool = False
    keep_queued: bool = False
    is_dry: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sub", metavar="FILE.sub", type=Path, help="a sbatch script, or a pipeline.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over the recipe's config")
    parser.add_argument("-n", dest="num_links", type=positive_int, default=1, metavar="N", help="links (default 1)")
    parser.add_argument("--seed", type=int, metavar="S", help="the run's seed (default: the recipe's own)")
    parser.add_argument("--run", metavar="NAME", help="name of the run (default: the job name)")
    parser.add_argument("--cluster", choices=["slurm", "local", "debug"], help="default: slurm where one answers")
    parser.add_argument("--after", metavar="JOBID", help="SLURM job that the first link waits for")
    parser.add_argument("--live", dest="is_live", action="store_true", help="run the checkout itself, not a copy of it")
    parser.add_argument(
        "--keep-queued", dest="keep_queued", action="store_true", help="if sbatch refuses a link, keep those before it"
    )
    parser.add_argument("--dry-run", dest="is_dry", action="store_true", help="print the submissions, do nothing")


def positive_int(text: str) -> int:
    """Read a number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1")
    return number


def merged_overrides(request: LaunchRequest, links: list[LinkRecord]) -> list[str]:
    """Return what this launch sets, on top of what the run's last link had: one value a key, the later one."""
    for word in request.overrides:
        if not OVERRIDE.fullmatch(word):
            raise LaunchError(f"{word!r}: expected key=value, e.g. optim.lr=3e-4")
        if word.startswith("run.name="):
            raise LaunchError(f"{word}: name a run with --run {word.partition('=')[2]}")
    if request.seed is not None and not 0 <= request.seed <= LARGEST_SEED:
        raise LaunchError(f"--seed {request.seed}: expected 0 to {LARGEST_SEED}")
    earlier = links[-1].submitted.get("argv", [])[2:] if links else []  # without the .sub and run.name=
    seed = [] if request.seed is None else [f"{SEED}={request.seed}"]
    merged: dict[str, str] = {}
    for word in [*earlier, *seed, *request.overrides]:
        key, _, value = word.partition("=")
        if key == SEED and merged.get(SEED, value) != value:
            raise LaunchError(f"{SEED}={value}: the seed is {merged[SEED]} already; --run NAME starts another run")
        merged[key] = value
    kept = [word for word in earlier if word not in request.overrides]
    if kept:
        print(f"as link {links[-1].number}: {' '.join(kept)}")
    return [f"{key}={value}" for key, value in merged.items()]


def seed_base(request: LaunchRequest, links: list[LinkRecord], directory: Path, overrides: list[str]) -> int | str:
    """Return what link seeds derive from: as before, else the run's seed, else its name (the recipe has a default)."""
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
    """Return `run.seed` of the run's own config.yaml, where the run has got that far."""
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
