"""Make the labels of iteration 2: a layer of the model before, k-means, and a cluster for every frame.

./launch.sh recipes/hubert_iter2/prepare.sub
python -m recipes.hubert_iter2.prepare --config recipes/hubert_iter2/tiny.yaml run.name=hubert_iter2_labels

The labels are in the run directory, where `data.labels` finds them. The same command goes on where a stop or a kill
has left it. Any number of ranks shares the work.
"""

import logging
import sys
from collections.abc import Sequence
from functools import partial

from core.config.load import parse_args
from core.data.reading import BadSample
from core.job.run import Outcome, Run, run_job
from core.rundir.files import BAD_SAMPLES, CLUSTERS, SCORES
from core.rundir.ledger import pieces_so_far
from core.rundir.whole_files import append_record, write_json
from core.units.cluster_report import draw_report
from core.units.labelled_speech import LabelledSpeech
from core.units.labelling import Labelling
from core.units.unit_quality import HeldOut
from recipes.hubert_iter2.assembly import DEFAULT_CONFIG, Config, clustered

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_args(Config, argv=argv, prog="prepare", description=__doc__, default_config=DEFAULT_CONFIG)
    return run_job(config, partial(prepare, config))


def prepare(config: Config, run: Run) -> Outcome:
    """Codebook and labels, as far as there is time; then a report on held-out speech."""

    def note_bad(bad: BadSample) -> None:
        logger.warning("no labels for %s", bad)
        append_record(run.directory / BAD_SAMPLES, {**bad.to_record(), "token": run.token})

    corpus, features = LabelledSpeech.open(config.data), clustered(config, ranks=run.ranks)
    labelling = Labelling(
        config.labelling,
        features,
        corpus.indexes,
        fit_on=[source.name for source in corpus.sources],
        directory=config.labelling.directory(run.directory),
        seed=run.seed,
        ranks=run.ranks,
        stops=run.stops,
        note_bad=note_bad,
    )
    before = pieces_so_far(run.directory)
    codebook = labelling.codebook()
    if codebook is None or not labelling.labels(codebook):
        reason = next(filter(None, run.ranks.gather(run.stop.reason)))
        return Outcome(step=before + labelling.num_made, finished=False, reason=reason)
    held_out = HeldOut.open(config.quality, grid=config.grid, seed=run.seed)
    labels = held_out.labels(features, codebook, ranks=run.ranks)
    report = held_out.report(labels, num_clusters=config.labelling.kmeans.num_clusters)
    logger.info("%s", report.describe())
    if run.ranks.is_first:
        write_json(run.directory / SCORES, report.scores("labels/"))
        draw_report(report, run.directory / CLUSTERS)
    return Outcome(step=before + labelling.num_made, finished=True, reason="all labels made")


if __name__ == "__main__":
    sys.exit(main())
