"""From speech to cluster labels: features of a share of the clips, k-means, then a label for every frame of every clip.

    runs/NAME/features/train-00000-of-00008.npy    of the clips to cluster; deleted once there is a codebook
              codebook.safetensors                 the centers
              labels/train/                        a label store for each manifest (core/units/label_store.py)
              .claims                              who is at which shard (core/data/shared_work.py)

The ranks of a job, and any number of jobs, share the shards. A shard is there whole or not at all, so that whatever a
kill has left is gone on with. Labels are made as features come, batch by batch: memory does not grow with the corpus.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from core.config.schema import section
from core.data.index import ManifestIndex
from core.data.shared_work import Piece, SharedWork, Stops
from core.distributed import Ranks
from core.rundir.environment import runs_root
from core.rundir.whole_files import read_json, write_json
from core.seeding import generator
from core.units.feature_store import FrameShards, is_whole, remove_features, write_features
from core.units.frame_features import FrameFeatures, NoteBad, extract
from core.units.kmeans import Codebook, KMeansConfig, fit_kmeans
from core.units.label_store import (
    CARD,
    SHARDS,
    LabelCard,
    LabelShards,
    LabelStore,
    is_fingerprint_of,
    manifest_fingerprint,
    shard_rows,
)

logger = logging.getLogger(__name__)

CODEBOOK, FEATURES, LABELS, CLAIMS = "codebook.safetensors", "features", "labels", ".claims"


@section
class LabellingConfig:
    """Settings of labelling. `fit_share`: of the training clips, whose frames k-means sees. `shard_hours`: of speech in
    a shard; a stop takes effect at its end, and a kill loses one for each rank. `num_shards`: of each manifest, to have
    so many instead. `batch_s`: padded audio in a forward. `run`: work on the labels of another run (its name under
    `runs/` or its directory), so that several jobs share them, each with another number `helper`.
    """

    kmeans: KMeansConfig
    fit_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    shard_hours: Annotated[float, Field(gt=0)] = 4.0
    num_shards: Annotated[int, Field(ge=1)] | None = None
    batch_s: Annotated[float, Field(gt=0)] = 240.0
    run: str | None = None
    helper: Annotated[int, Field(ge=0)] = 0

    def directory(self, own: Path) -> Path:
        """Return where the run with the directory `own` makes labels."""
        return own if self.run is None else runs_root() / self.run

    def shards(self, index: ManifestIndex, *, share: float = 1.0) -> int:
        """Return into how many parts a manifest, or a share of its clips, is cut."""
        hours = share * float(index.durations_s.sum(dtype=np.float64)) / 3600
        return self.num_shards or max(1, math.ceil(hours / self.shard_hours))


@dataclass(frozen=True)
class Labelling:
    """The work on labels of the manifests `indexes`; those in `fit_on` are what k-means sees."""

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
        if not self._fit(path, facts):
            return None
        codebook, known = Codebook.load(path)
        prints, wanted = known.get("manifests"), facts["manifests"]
        if isinstance(prints, dict) and prints.keys() == wanted.keys():
            known["manifests"] = {
                name: wanted[name] if is_fingerprint_of(one, wanted[name]) else one for name, one in prints.items()
            }
        if known != facts:
            changes = [f"{key}: {known.get(key)} -> {value}" for key, value in facts.items() if known.get(key) != value]
            raise ValueError(f"{path} was made otherwise ({'; '.join(changes)}); use another run.name=...")
        return codebook.to(self.ranks.device)

    def labels(self, codebook: Codebook) -> bool:
        """Label every manifest; return False when stopped."""
        return all(self._label(name, index, codebook) for name, index in self.indexes.items())

    @property
    def num_made(self) -> int:
        """The number of shards of features and of labels that the ranks of this job made."""
        return self._work.num_made

    def card(self, index: ManifestIndex, codebook: Codebook) -> LabelCard:
        return LabelCard(
            features=self.features.name,
            layer=self.features.layer,
            num_clusters=self.config.kmeans.num_clusters,
            rate_hz=self.features.rate_hz,
            codebook=codebook.hash,
            checkpoint=self.features.checkpoint,
            manifest=manifest_fingerprint(index),
        )

    @cached_property
    def _work(self) -> SharedWork:
        rng = generator(self.seed, "labels.order", self.config.helper, self.ranks.rank)
        return SharedWork(self.directory / CLAIMS, ranks=self.ranks, stops=self.stops, rng=rng)

    # ---- the codebook

    def _facts(self) -> dict[str, Any]:
        features = self.features
        return {
            "features": features.name,
            "layer": features.layer,
            "checkpoint": features.checkpoint,
            "seed": self.seed,
            "fit_share": self.config.fit_share,
            "kmeans": asdict(self.config.kmeans),
            "manifests": {name: manifest_fingerprint(self.indexes[name]) for name in self.fit_on},
        }

    def _fit(self, path: Path, facts: Mapping[str, Any]) -> bool:
        """Make sure that there is a codebook, and no features any more; return False when stopped."""
        folder = self.directory / FEATURES
        num_shards = [self.config.shards(self.indexes[name], share=self.config.fit_share) for name in self.fit_on]
        pieces = [
            self._features_of(place, shard=shard, num_shards=num)
            for place, num in enumerate(num_shards)
            for shard in range(num)
        ]

        def begin() -> None:
            plan = {**facts, "num_shards": num_shards}
            del plan["kmeans"]  # other clusters of the same features
            folder.mkdir(exist_ok=True)
            if (folder / CARD).exists() and read_json(folder / CARD) != plan:
                raise ValueError(f"{folder}: features of others; delete the folder, or use another run.name=...")
            write_json(folder / CARD, plan)

        def fit() -> None:
            frames = FrameShards([folder / piece.name for piece in pieces])
            found = fit_kmeans(frames, self.config.kmeans, seed=self.seed, ranks=self.ranks)
            mean = found.inertia / len(frames)
            logger.info("k-means: %d iterations, mean squared distance %.4f", found.num_iterations, mean)
            self.ranks.barrier()  # nobody reads the features any more
            self._on_first(lambda: found.codebook.save(path, **facts))

        def clear() -> None:
            for piece in pieces:
                remove_features(folder / piece.name)
            (folder / CARD).unlink(missing_ok=True)
            with suppress(OSError):  # a person's file is in it
                folder.rmdir()

        work = self._work
        return (
            work.by_one(CODEBOOK, partial(self._on_first, begin), is_done=path.exists)
            and work.pieces(FEATURES, pieces, is_over=path.exists)
            and work.by_one(CODEBOOK, fit, is_done=path.exists)
            and work.by_one(CODEBOOK, partial(self._on_first, clear), is_done=lambda: not folder.exists())
        )

    def _features_of(self, place: int, *, shard: int, num_shards: int) -> Piece:
        """Return the work on a shard of the chosen clips of manifest `place`."""
        name, index = self.fit_on[place], self.indexes[self.fit_on[place]]
        path = self.directory / FEATURES / f"{name}-{shard:05d}-of-{num_shards:05d}.npy"

        def make() -> None:
            part = shard_rows(len(index), shard=shard, num_shards=num_shards)
            is_chosen = generator(self.seed, "labels.fit", place, shard).random(len(part)) < self.config.fit_share
            rows = (part.start + np.flatnonzero(is_chosen)).tolist()
            write_features(
                path, (frames.cpu().numpy() for _, frames in self._extract(index, rows)), dim=self.features.dim
            )

        return Piece(path.name, partial(is_whole, path), make)

    # ---- the labels

    def _label(self, name: str, index: ManifestIndex, codebook: Codebook) -> bool:
        folder, card = self.directory / LABELS / name, self.card(index, codebook)
        shards = LabelShards(folder, card, num_rows=len(index), num_shards=self.config.shards(index))

        def write(shard: int) -> None:
            rows = shards.rows(shard)
            found = {row: codebook.assign(frames).cpu().numpy() for row, frames in self._extract(index, rows)}
            shards.write(shard, [found.get(row, np.zeros(0, np.int64)) for row in rows])

        what, work, is_there = f"labels of {name}", self._work, (folder / CARD).exists

        def is_clear() -> bool:
            return not (folder / SHARDS).exists()

        pieces = [
            Piece(f"{what}: {shard}", partial(shards.is_whole, shard), partial(write, shard))
            for shard in range(shards.num_shards)
        ]
        is_made = (
            work.by_one(what, partial(self._on_first, shards.begin), is_done=is_there)
            and work.pieces(what, pieces, is_over=is_there)
            and work.by_one(what, partial(self._on_first, shards.merge), is_done=is_there)
            and work.by_one(what, partial(self._on_first, shards.remove), is_done=is_clear)
        )
        if is_made:
            LabelStore.open(folder, **asdict(card))
        return is_made

    def _extract(self, index: ManifestIndex, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
        return extract(
            self.features,
            index,
            rows,
            batch_s=self.config.batch_s,
            device=self.ranks.device,
            note_bad=self.note_bad,
        )

    def _on_first(self, work: Callable[[], object]) -> None:
        """Do `work` on rank 0; its error is raised on all ranks."""
        problem: Exception | None = None
        if self.ranks.is_first:
            try:
                work()
            except (ValueError, OSError) as error:
                problem = error
        if problem := self.ranks.from_first(problem):
            raise problem
