"""Make the labels of iteration 2: a layer of the model before, k-means, and a cluster for every frame.

./launch.sh recipes/hubert_iter2/prepare.sub
python -m recipes.hubert_iter2.prepare --config recipes/hubert_iter2/tiny.yaml run.name=hubert_iter2_labels

The labels are in the run directory, where `data.labels` finds them. The same command goes on where a stop or a kill
has left it. Any number of ranks shares the work.
"""

import sys
from collections.abc import Sequence
from functools import partial

from core.config.load import parse_args
from core.job.run import Outcome, Run, run_job
from core.units.label_preparation import prepare_labels
from recipes.hubert_iter2.assembly import DEFAULT_CONFIG, Config, clustered


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_args(Config, argv=argv, prog="prepare", description=__doc__, default_config=DEFAULT_CONFIG)
    return run_job(config, partial(prepare, config))


def prepare(config: Config, run: Run) -> Outcome:
    return prepare_labels(config, clustered(config, ranks=run.ranks), run)


if __name__ == "__main__":
    sys.exit(main())
