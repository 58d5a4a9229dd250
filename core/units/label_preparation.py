"""A job that makes labels: the codebook, a label for every frame of every clip, and a report on held-out speech."""

import logging
from typing import Protocol

from core.data.reading import BadSample
from core.job.run import Outcome, Run
from core.rundir.files import BAD_SAMPLES, CLUSTERS, SCORES
from core.rundir.ledger import pieces_so_far
from core.rundir.whole_files import append_record, write_json
from core.units.cluster_report import draw_report
from core.units.frame_features import FrameFeatures
from core.units.frame_labels import FrameGrid
from core.units.labelled_speech import LabelledSpeech, LabelledSpeechConfig
from core.units.labelling import Labelling, LabellingConfig
from core.units.unit_quality import HeldOut, QualityConfig

logger = logging.getLogger(__name__)


class PreparationConfig(Protocol):
    """The sections of a recipe's configuration that making labels needs."""

    @property
    def data(self) -> LabelledSpeechConfig: ...
    @property
    def labelling(self) -> LabellingConfig: ...
    @property
    def quality(self) -> QualityConfig: ...
    @property
    def grid(self) -> FrameGrid: ...


def prepare_labels(config: PreparationConfig, features: FrameFeatures, run: Run) -> Outcome:
    """Make codebook and labels, as far as there is time; then write scores.json and a picture of the clusters."""

    def note_bad(bad: BadSample) -> None:
        logger.warning("no labels for %s", bad)
        append_record(run.directory / BAD_SAMPLES, {**bad.to_record(), "token": run.token})

    corpus = LabelledSpeech.open(config.data)
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
