"""Write the newest weights of a run as torchaudio, Hugging Face or fairseq name them.

    python -m recipes.hubert_iter2.export hubert_iter2 hubert_base.pt --format torchaudio
    python -m recipes.hubert_iter2.export hubert_iter2 hubert_base --format huggingface

The run is one of this recipe or of hubert_iter1, by its name under `runs/` or its directory. Of huggingface the output
is a folder for `HubertModel.from_pretrained`, of the others a file for `torch.load`. What is there already is left.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from core import distributed
from core.job.errors import exit_on_error
from core.models.hubert.config import HubertConfig
from core.models.hubert.model import HubertPretraining
from core.models.hubert.names import Style, export_state, save_huggingface
from core.rundir.whole_files import appears_whole
from core.train.trained import TrainedRun, weights_hash
from recipes.hubert_iter2.assembly import RECIPES


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("export", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("output", metavar="OUTPUT", type=Path)
    parser.add_argument("--format", required=True, choices=get_args(Style))
    options = parser.parse_args(argv)
    output: Path = options.output
    with exit_on_error(), distributed.joined(device="cpu") as ranks:
        if output.exists():
            raise ValueError(f"{output} exists already; choose another name")
        run = TrainedRun.named(options.run, key="RUN", recipes=RECIPES)
        model = run.model(HubertConfig, HubertPretraining, ranks=ranks)
        output.parent.mkdir(parents=True, exist_ok=True)
        if options.format == "huggingface":
            unfinished = output.with_name(f".{output.name}.{os.getpid()}")
            save_huggingface(model, unfinished)
            unfinished.rename(output)
        else:
            state = {name: tensor.clone() for name, tensor in export_state(model, options.format).items()}
            with appears_whole(output) as file:  # fairseq looks for its tensors under "model"
                torch.save({"model": state} if options.format == "fairseq" else state, file)
    print(f"{output}: the weights {weights_hash(model)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
