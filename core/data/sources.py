"""What a run trains or validates on: one manifest, or a blend of several by weight.

A blend is a YAML file, a list of manifests with whole numbers as weights: of every 3 draws here, 2 are English. A
validation takes every clip once, whatever its weight.

    sources:
      - {manifest: ../demo/english_train.jsonl, weight: 2}
      - {manifest: ../demo/russian_train.jsonl, weight: 1}
"""

from pathlib import Path
from typing import NamedTuple

from core.config.load import load
from core.config.schema import section
from core.data.index import ManifestIndex
from core.samplers.plan import Source


@section
class BlendEntry:
    """A manifest, relative to the blend's folder; its name in logs is the file's unless `name` says another."""

    manifest: str
    weight: int = 1
    name: str | None = None

    def __post_init__(self) -> None:
        if self.weight < 1:
            raise ValueError(f"weight={self.weight} must be a whole number of at least 1; leave the source out instead")


@section
class BlendConfig:
    """The file of a blend."""

    sources: list[BlendEntry]


@section
class SourcesConfig:
    """The data of a small recipe. `train`, `valid`: a manifest, or a blend of several."""

    train: str
    valid: str


class TrainingSource(NamedTuple):
    """One manifest of a blend."""

    name: str
    manifest: ManifestIndex
    weight: int

    @property
    def planned(self) -> Source:
        return Source(self.name, self.manifest.durations_s, self.weight)


def open_sources(path: Path) -> list[TrainingSource]:
    """Open the manifests of a blend (`.yaml`), or the one that `path` is. ValueError, with file and line."""
    if path.suffix not in (".yaml", ".yml"):
        return [TrainingSource(path.stem, ManifestIndex.open(path), 1)]
    blend = load(BlendConfig, path)
    if not blend.sources:
        raise ValueError(f"{path}: sources: the list is empty; name at least one manifest")
    return [
        TrainingSource(
            entry.name or Path(entry.manifest).stem, ManifestIndex.open(path.parent / entry.manifest), entry.weight
        )
        for entry in blend.sources
    ]
