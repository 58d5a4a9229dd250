"""From speech to cluster labels: features of a share of the clips, k-means, then a label for every frame of every clip.

    runs/NAME/features/train-00000-of-00008.npy    of the clips to cluster; deleted once there is a codebook
              codebook.safetensors                 the centers
              labels/train/                        a label store for each manifest (core/data/label_store.py)

Each rank takes every so-manieth shard. A shard is there whole or not at all, so that whatever a kill has left is gone
on with. Labels are made as features come, batch by batch: memory does not grow with the corpus.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from core.config import section
from core.data.feature_store import FrameShards, is_whole, write_features
from core.data.frame_features import FrameFeatures, NoteBad, extract
from core.data.index import ManifestIndex
from core.data.kmeans import Codebook, KMeansConfig, fit_kmeans
from core.data.label_store import CARD, LabelCard, LabelShards, LabelStore, manifest_print, shard_rows
from core.distributed import Ranks
from core.runfiles import read_json, write_json
from core.seeding import generator

logger = logging.getLogger(__name__)

CODEBOOK, FEATURES, LABELS = "codebook.safetensors", "features", "labels"

# Called by all ranks together after each shard, with the seconds it took; True to stop here.
Stops = Callable[[float], bool]


@section
class LabellingConfig:
    """How labels are made. `fit_share`: of the training clips, whose frames k-means sees. `num_shards`: of each
    manifest; a stop loses at most one for each rank. `batch_s`: padded audio in a forward."""

    kmeans: KMeansConfig
    fit_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    num_shards: Annotated[int, Field(ge=1)] = 40
    batch_s: Annotated[float, Field(gt=0)] = 240.0


@dataclass(frozen=True)
class Labelling:
    """Labels of the manifests `indexes`; those in `fit_on` are what k-means sees."""

    config: LabellingConfig
    features: FrameFeatures
    indexes: Mapping[str, ManifestIndex]
    fit_on: Sequence[str]
    directory: Path
    seed: int
    ranks: Ranks
    stops: Stops
    note_bad: NoteBad

    def codebook(self) -> Codebook | None:
        """Fit the centers, or load those that are there; None when stopped. ValueError where those are of others."""
        path, facts = self.directory / CODEBOOK, self._facts()
        if not path.exists():
            shards = self._feature_shards(facts)
            if shards is None:
                return None
            frames = FrameShards(shards)
            fit = fit_kmeans(frames, self.config.kmeans, seed=self.seed, ranks=self.ranks)
            mean = fit.inertia / len(frames)
            logger.info("k-means: %d iterations, mean squared distance %.4f", fit.num_iterations, mean)
            self.ranks.barrier()  # nobody reads the features any more
            if self.ranks.is_first:
                fit.codebook.save(path, **facts)
                self._remove_features(shards)
            self.ranks.barrier()
        codebook, known = Codebook.load(path)
        if known != facts:
            changes = [f"{key}: {known.get(key)} -> {value}" for key, value in facts.items() if known.get(key) != value]
            raise ValueError(f"{path} was made otherwise ({'; '.join(changes)}); use another run.name=...")
        return codebook.to(self.ranks.device)

    def labels(self, codebook: Codebook) -> bool:
        """Label every manifest; False when stopped."""
        return all(self._label(name, index, codebook) for name, index in self.indexes.items())

    def card(self, index: ManifestIndex, codebook: Codebook) -> LabelCard:
        return LabelCard(
            features=self.features.name,
            layer=self.features.layer,
            num_clusters=self.config.kmeans.num_clusters,
            rate_hz=self.features.rate_hz,
            codebook=codebook.hash,
            checkpoint=self.features.checkpoint,
            manifest=manifest_print(index),
        )

    def _facts(self) -> dict[str, Any]:
        features = self.features
        return {
            "features": features.name,
            "layer": features.layer,
            "checkpoint": features.checkpoint,
            "seed": self.seed,
            "fit_share": self.config.fit_share,
            "kmeans": asdict(self.config.kmeans),
            "manifests": {name: manifest_print(self.indexes[name]) for name in self.fit_on},
        }

    def _feature_shards(self, facts: Mapping[str, Any]) -> list[Path] | None:
        folder = self.directory / FEATURES
        folder.mkdir(parents=True, exist_ok=True)
        plan = {**facts, "num_shards": self.config.num_shards}
        del plan["kmeans"]  # other clusters of the same features
        if (folder / CARD).exists() and read_json(folder / CARD) != plan:
            raise ValueError(f"{folder}: features of others; delete the folder, or use another run.name=...")
        self.ranks.barrier()
        if self.ranks.is_first:
            write_json(folder / CARD, plan)
        todo: list[tuple[Path, ManifestIndex, list[int]]] = []
        num = self.config.num_shards
        for place, name in enumerate(self.fit_on):
            chosen = generator(self.seed, "labels.fit", place).random(len(self.indexes[name])) < self.config.fit_share
            rows = np.flatnonzero(chosen).tolist()
            for shard in range(num):
                part = shard_rows(len(rows), shard=shard, num_shards=num)
                path = folder / f"{name}-{shard:05d}-of-{num:05d}.npy"
                todo.append((path, self.indexes[name], rows[part.start : part.stop]))
        missing = [one for one in todo if not is_whole(one[0])]
        self.ranks.barrier()  # all have looked before anyone writes

        def write(path: Path, index: ManifestIndex, rows: list[int]) -> None:
            clips = (frames.cpu().numpy() for _, frames in self._extract(index, rows))
            write_features(path, clips, dim=self.features.dim)

        done = self._shared("features", [partial(write, *one) for one in missing])
        return [path for path, _, _ in todo] if done else None

    def _remove_features(self, shards: Sequence[Path]) -> None:
        for path in shards:
            path.unlink()
            path.with_suffix(".lengths.npy").unlink()
        (self.directory / FEATURES / CARD).unlink()
        (self.directory / FEATURES).rmdir()

    def _label(self, name: str, index: ManifestIndex, codebook: Codebook) -> bool:
        folder, card = self.directory / LABELS / name, self.card(index, codebook)
        if (folder / CARD).exists():
            LabelStore.open(folder, **asdict(card))
            return True
        self.ranks.barrier()
        shards = LabelShards(folder, card, num_rows=len(index), num_shards=self.config.num_shards)
        missing = shards.missing()
        self.ranks.barrier()

        def write(shard: int) -> None:
            rows = shards.rows(shard)
            found = {row: codebook.assign(frames).cpu().numpy() for row, frames in self._extract(index, rows)}
            shards.write(shard, [found.get(row, np.zeros(0, np.int64)) for row in rows])

        done = self._shared(f"labels of {name}", [partial(write, shard) for shard in missing])
        if done and self.ranks.is_first:
            shards.merge()
        self.ranks.barrier()
        return done

    def _extract(self, index: ManifestIndex, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
        return extract(
            self.features,
            index,
            rows,
            batch_s=self.config.batch_s,
            device=self.ranks.device,
            note_bad=self.note_bad,
        )

    def _shared(self, what: str, tasks: Sequence[Callable[[], None]]) -> bool:
        """Each rank does every so-manieth task, a round at a time; False when stopped in between."""
        size = self.ranks.world_size
        began = time.monotonic()
        for start in range(0, len(tasks), size):
            round_began = time.monotonic()
            if start + self.ranks.rank < len(tasks):
                tasks[start + self.ranks.rank]()
            now = time.monotonic()
            done = min(len(tasks), start + size)
            left_s = (now - began) / done * (len(tasks) - done)
            logger.info("%s: %d of %d shards, %.0f s left", what, done, len(tasks), left_s)
            if self.stops(now - round_began) and done < len(tasks):
                return False
        return True
