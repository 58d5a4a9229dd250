"""The model of a finished or unfinished run, with the weights of its newest checkpoint."""

from pathlib import Path

from core.distributed import Ranks
from core.models.ctc import CTCModel
from core.parallel.engine import build_engine
from core.parameters import freeze
from core.runfiles import CHECKPOINTS
from core.text import CharacterVocabulary
from core.train.checkpoint import CheckpointStore
from recipes.lmu_gigaspeech.assembly import Config, build_model


def load_trained(config: Config, directory: Path, *, vocabulary: CharacterVocabulary, ranks: Ranks) -> CTCModel:
    """In evaluation mode, on this rank's device; SystemExit where the run has no complete checkpoint."""
    model = build_model(config, vocab_size=len(vocabulary), seed=config.run.seed)
    freeze(model, config.optim.freeze)
    engine = build_engine(model, config.parallel, optim=config.optim, ranks=ranks)
    store = CheckpointStore(directory / CHECKPOINTS, config.checkpoint, ranks=ranks, token=0)
    newest = store.newest()
    if newest is None:
        raise SystemExit(f"{directory} has no complete checkpoint; train first, or name another run")
    store.load_weights_only(engine, newest)
    model.eval()
    return model
