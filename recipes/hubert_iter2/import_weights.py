"""Make a run of published weights of torchaudio, Hugging Face or fairseq, to cluster its layers or to fine-tune it.

    python -m recipes.hubert_iter2.import_weights hubert-base-ls960 --format huggingface run.name=published
    ./launch.sh recipes/hubert_iter2/prepare.sub features.run=published features.layer=9
    ./launch.sh recipes/hubert_iter2/finetune.sub pretrained.run=published

First the file, of huggingface the folder, then --format, then --config and settings: `model` must be that of the
weights, `data.crop.normalize` says how they heard audio. A head that they lack keeps its random values. The
optimizer is new.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from core.config.load import parse_args
from core.models.hubert.model import HubertPretraining
from core.models.hubert.names import Style, import_state, load_huggingface, read_state
from core.seeding import seed_everything
from core.train.imported import begin_run
from recipes.hubert_iter2.assembly import DEFAULT_CONFIG, Config


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "import_weights", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", metavar="FILE_OR_DIR", type=Path)
    parser.add_argument("--format", required=True, choices=get_args(Style))
    options, words = parser.parse_known_args(argv)
    config = parse_args(
        Config, argv=words, prog="import_weights FILE_OR_DIR --format STYLE", description=__doc__,
        default_config=DEFAULT_CONFIG,
    )  # fmt: skip
    seed_everything(config.run.seed, "model")
    model = HubertPretraining(config.model)

    def fill(optimizer: torch.optim.Optimizer) -> int:
        kept = filled(model, options.source, options.format)
        if kept:
            print(f"not in {options.source}, so as they begin: {', '.join(kept)}")
        return 0

    begin_run(config, model, fill)
    return 0


def filled(model: HubertPretraining, source: Path, style: Style) -> list[str]:
    """Copy the weights into the model; return the names that the source lacks. ValueError where it is another."""
    if not source.exists():
        raise ValueError(f"{source}: there is no such file or folder")
    if style == "huggingface" and source.is_dir():
        return load_huggingface(model, source)
    return import_state(model, read_state(source), style)


if __name__ == "__main__":
    sys.exit(main())
