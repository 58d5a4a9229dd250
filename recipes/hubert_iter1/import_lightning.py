"""Begin a run with a checkpoint of the predecessor (Lightning, on GPUs or Gaudi): training goes on where it was.

python -m recipes.hubert_iter1.import_lightning epoch=220-step=241553.ckpt run.name=imported
./launch.sh -n4 --run imported recipes/hubert_iter1/job.sub
"""

import sys
from collections.abc import Sequence

from core.models.hubert.lightning import import_lightning
from core.models.hubert.model import HubertPretraining
from core.train.imported import import_run
from recipes.hubert_iter1.assembly import DEFAULT_CONFIG, Config


def main(argv: Sequence[str] | None = None) -> int:
    return import_run(
        Config, lambda config: HubertPretraining(config.model), import_lightning,
        argv=argv, description=__doc__, default_config=DEFAULT_CONFIG,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
