"""Prepare speech for contrastive training: 16 kHz FLAC without silence at the ends, a TSV, manifests with words.

./launch.sh recipes/csa_stage1/prepare.sub
python -m recipes.csa_stage1.prepare --config recipes/csa_stage1/tiny_prepare.yaml
python -m recipes.csa_stage1.prepare prepare.input=[data/LibriSpeech] prepare.output=data/csa prepare.aligner=RUN

The same command goes on where a stop or a kill has left it. Any number of ranks and jobs shares the work.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from core.config.load import parse_args
from core.config.schema import ConfigError, section
from core.data.shared_work import SharedWork
from core.job.run import Outcome, Run, run_job
from core.job.settings import JobConfig
from core.recognition.aligner import Aligner
from core.recognition.transcriber import RECIPE, Recognizer
from core.rundir.environment import runs_root
from core.rundir.exit_codes import ExitCode
from core.rundir.files import DONE
from core.rundir.ledger import pieces_so_far
from core.seeding import generator
from core.train.trained import TrainedRun
from recipes.csa_stage1.preparation import SHARDS, Preparation, PrepareConfig

DEFAULT_CONFIG = Path(__file__).parent / "prepare.yaml"


@section
class Config(JobConfig):
    prepare: PrepareConfig


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_args(Config, argv=argv, prog="prepare", description=__doc__, default_config=DEFAULT_CONFIG)
    done = runs_root() / config.run.name / DONE
    if done.exists():
        try:
            preparation = Preparation.open(config.prepare)
            preparation.check()
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return ExitCode.CONFIG
        if not preparation.is_finished():
            print(f"{preparation.output} is not whole, or is to be made anew: going on")
            done.unlink(missing_ok=True)
    return run_job(config, partial(prepare, config))


def prepare(config: Config, run: Run) -> Outcome:
    """All clips, as far as there is time, then what lists them."""
    preparation = Preparation.open(config.prepare)
    add_words = None
    if config.prepare.aligner is not None:
        aligner = TrainedRun.named(config.prepare.aligner, key="prepare.aligner", recipes=RECIPE)
        add_words = Aligner(Recognizer.open(aligner, ranks=run.ranks))
    problem = run.ranks.from_first(_begin(preparation) if run.ranks.is_first else None)
    if problem is not None:
        raise ConfigError([problem])
    rng = generator(run.seed, "prepare", run.token, run.ranks.rank)
    work = SharedWork(preparation.output / SHARDS / "claims", ranks=run.ranks, stops=run.stops, rng=rng)
    before = pieces_so_far(run.directory)
    done = preparation.shards(work, add_words=add_words)
    done = done and preparation.lists(work)
    if not done:
        reason = next(filter(None, run.ranks.gather(run.stop.reason)))
        return Outcome(step=before + work.num_made, finished=False, reason=reason)
    return Outcome(step=before + work.num_made, finished=True, reason="all clips prepared")


def _begin(preparation: Preparation) -> str | None:
    try:
        preparation.begin()
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main())
