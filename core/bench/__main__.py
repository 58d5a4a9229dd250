"""Compare settings of a recipe by short training runs: an A/B test, a sweep, or both.

./launch.sh bench ab --config recipes/lmu_gigaspeech/tiny_bench.yaml
./launch.sh bench sweep --config recipes/lmu_gigaspeech/tiny_bench.yaml repeats=1
./launch.sh bench summarize --config recipes/lmu_gigaspeech/tiny_bench.yaml
./launch.sh bench diagnose --config recipes/lmu_gigaspeech/tiny_bench.yaml

ab, sweep, both   do the runs: as a job array where SLURM answers, else here, one after another. The same command goes
                  on where it was interrupted; finished runs are not repeated
summarize         write tables, ranking, best configuration and pictures anew; also of an unfinished suite
diagnose          look for leaks in each run; exit code 1 if there is one
task              one run of a job array (typed by bench.sub)

How to use it, and what each setting does: recipes/csa_stage1/docs/benchmark.md
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from core.bench.settings import MODES, BenchConfig, Mode
from core.bench.suite import Suite, queue, run_here, slurm_answers, work
from core.bench.summary import diagnose_suite, summarize
from core.bench.telemetry.leaks import LEAK
from core.config.load import parse_args
from core.config.schema import ConfigError
from core.rundir.environment import runs_root
from core.rundir.exit_codes import ExitCode
from core.rundir.processes import StopRequests

logger = logging.getLogger(__name__)

VERBS = ("ab", "sweep", "both", "summarize", "diagnose", "task")


def main(
    argv: Sequence[str] | None = None,
    *,
    description: str | None = __doc__,
    default_config: Path = Path("bench.yaml"),
) -> int:
    """Do what a command line says; return the exit code. A recipe may give its own description and configuration."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words.pop(0) if words and words[0] in VERBS else ""
    logging.basicConfig(level=logging.INFO, format="bench: %(message)s", stream=sys.stdout, force=True)
    os.umask(0o077)
    try:
        if verb == "task":
            return _task(words)
        config = parse_args(BenchConfig, argv=words, prog=f"bench {verb or '|'.join(VERBS)}", description=description,
                            default_config=default_config)  # fmt: skip
        if verb == "summarize":
            return _summarize(runs_root() / config.name)
        if verb == "diagnose":
            return _diagnose(config)
        if not verb:
            raise ConfigError([f"say what to do: {', '.join(VERBS[:-1])}; --help tells more"])
        return _bench(config, MODES if verb == "both" else tuple(mode for mode in MODES if mode == verb))
    except (ConfigError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return int(ExitCode.CONFIG)


def _bench(config: BenchConfig, modes: Sequence[Mode]) -> int:
    suites = [Suite.begin(config, mode) for mode in modes]
    cluster = config.launch.cluster
    if cluster == "slurm" or (cluster == "auto" and slurm_answers()):
        codes = [queue(suite) for suite in suites]
        logger.info("each run summarizes the suite when it ends: see %s", suites[0].directory / "summary.md")
        return max(codes)
    with StopRequests() as stops:
        try:
            return max([run_here(suite, stops) for suite in suites])
        finally:  # after Ctrl-C, too
            _summarize(suites[0].directory)


def _task(words: Sequence[str]) -> int:
    """Do one run of a job array. `words`: as bench.sub gets them from the launcher."""
    settings = dict(word.split("=", 1) for word in words)
    suite = Suite.of_task(Path(settings["bench.suite"]))
    with StopRequests() as stops:
        try:
            return work(suite, suite.runs[int(settings["bench.number"]) - 1], stops)
        finally:
            _summarize(suite.directory)


def _summarize(directory: Path) -> int:
    """Write the summary. One that cannot be written takes nothing from the runs: it can be made anew."""
    try:
        best = summarize(directory)["best_group"]
    except FileNotFoundError:
        raise
    except OSError as error:
        logger.error("the summary cannot be written: %s; make it anew with the verb summarize", error)
        return int(ExitCode.STORAGE)
    logger.info("best: %s", best or "no group has a good run yet")
    logger.info("see %s", directory / "summary.md")
    return int(ExitCode.DONE)


def _diagnose(config: BenchConfig) -> int:
    findings = diagnose_suite(runs_root() / config.name)
    for name, found in findings.items():
        for one in found:
            measured = f"{one.points} points, slope {one.slope:g}, drift {one.drift:g}"
            logger.info("%s: %s: %s (%s) %s", name, one.series, one.verdict, measured, one.reason)
    return int(any(one.verdict == LEAK for found in findings.values() for one in found))


if __name__ == "__main__":
    sys.exit(main())
