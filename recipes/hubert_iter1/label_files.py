"""Labels from and to the text files of the predecessor and of fairseq: `tsv/NAME.tsv`, `label/label_NAME.pt` or .km.

    python -m recipes.hubert_iter1.label_files export dev.jsonl hubert_iter1_labels --tsv dev.tsv --labels dev.km
    python -m recipes.hubert_iter1.label_files import dev.jsonl theirs --tsv dev.tsv --labels dev.km --num-clusters 100

The manifest, then the run with the labels, by its name under `runs/` or its directory. An import makes the label store
`labels/MANIFEST` in it, for `data.labels`; one call for each manifest to train and validate on. Cuts are found by the
paths of their audio. Without --layer the labels are of MFCC; with --layer 6 of that layer of a model. Where that is not
here, train iteration 2 with `features.run=null`.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from core.data.index import ManifestIndex
from core.job.errors import exit_on_error
from core.rundir.environment import runs_root
from core.units.label_store import LabelCard, LabelStore, manifest_fingerprint
from core.units.labelling import LABELS
from recipes.hubert_iter1.label_text import export_labels, import_labels

RATE_HZ = {"mfcc": 100.0, "hubert": 50.0}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("label_files", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=["import", "export"])
    parser.add_argument("manifest", metavar="MANIFEST", type=Path)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--tsv", required=True, type=Path, help="the root, then path<TAB>samples of each utterance")
    parser.add_argument("--labels", required=True, type=Path, help="a line of integers for each utterance")
    parser.add_argument("--num-clusters", type=int, help="of the labels to import")
    parser.add_argument("--convention", choices=["torchaudio", "kaldi"], default="torchaudio", help="of MFCC")
    parser.add_argument("--layer", type=int, help="of the model whose frames were clustered")
    parser.add_argument("--checkpoint", help="hash of its weights, where it is a run here")
    options = parser.parse_args(argv)
    if options.action == "import" and options.num_clusters is None:
        parser.error("import needs --num-clusters: the largest label need not occur")
    with exit_on_error():
        index = ManifestIndex.open(options.manifest)
        directory = runs_root() / options.run / LABELS / index.manifest.stem
        if options.action == "export":
            store = LabelStore.open(directory, manifest=manifest_fingerprint(index))
            export_labels(store, index, tsv=options.tsv, labels=options.labels)
            print(f"{options.labels}: labels of {len(store)} cuts, {store.card}")
        else:
            if directory.exists():
                raise ValueError(f"{directory} exists already; choose another run")
            store = import_labels(options.tsv, options.labels, index, directory, card_of(options, index))
            print(f"{directory}: labels of {len(store)} cuts, {store.card}")
    return 0


def card_of(options: argparse.Namespace, index: ManifestIndex) -> LabelCard:
    """What the labels are, as far as the files tell."""
    is_hidden = options.layer is not None
    return LabelCard(
        features="hubert" if is_hidden else f"mfcc:{options.convention}",
        layer=options.layer,
        num_clusters=options.num_clusters,
        rate_hz=RATE_HZ["hubert" if is_hidden else "mfcc"],
        codebook=f"of {hashlib.blake2b(options.labels.read_bytes(), digest_size=16).hexdigest()}",
        checkpoint=options.checkpoint,
        manifest=manifest_fingerprint(index),
    )


if __name__ == "__main__":
    sys.exit(main())
