"""Label stores: written in shards, interrupted, damaged, contradicted; and the predecessor's text files."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut, Recording

from core.data.index import ManifestIndex, build_index, write_manifest
from core.units.label_store import LabelCard, LabelShards, LabelStore, manifest_fingerprint, shard_rows, write_store
from recipes.hubert_iter1.label_text import (
    Utterances,
    export_labels,
    import_labels,
    read_labels,
    read_tsv,
    write_labels,
    write_tsv,
)

RATE = 16000


def card(manifest: str = "print", **values: object) -> LabelCard:
    facts: dict = {
        "features": "mfcc:torchaudio", "layer": None, "num_clusters": 9, "rate_hz": 100.0, "codebook": "abc",
        "checkpoint": None, "manifest": manifest,
    }  # fmt: skip
    return LabelCard(**{**facts, **values})


def some_labels(num: int, *, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(9, size=int(rng.integers(0, 30))) for _ in range(num)]


def assert_holds(store: LabelStore, labels: list[np.ndarray]) -> None:
    assert len(store) == len(labels)
    for row, expected in enumerate(labels):
        assert store[row].dtype == np.int16 and store[row].tolist() == expected.tolist()


def test_shards_become_one_store_in_any_order(tmp_path: Path) -> None:
    labels = some_labels(23)
    shards = LabelShards(tmp_path, card(), num_rows=23, num_shards=4)
    shards.begin()
    for shard in (2, 0, 3):
        shards.write(shard, (labels[row] for row in shards.rows(shard)))
    with pytest.raises(ValueError, match=r"shards \[1\] of 4 are missing"):
        shards.merge()
    again = LabelShards(tmp_path, card(), num_rows=23, num_shards=4)  # after a kill
    again.begin()
    assert again.missing() == [1]
    again.write(1, [labels[row] for row in again.rows(1)])
    store = again.merge()
    assert_holds(store, labels)
    assert_holds(LabelStore.open(tmp_path), labels)
    assert_holds(pickle.loads(pickle.dumps(store)), labels)
    assert store.counts().tolist() == np.bincount(np.concatenate(labels), minlength=9).tolist()
    assert {path.name for path in tmp_path.iterdir()} == {"labels.npy", "offsets.npy", "card.json"}


def test_shards_are_cut_as_the_predecessor_cuts_them() -> None:
    for num_rows, num_shards in [(23, 5), (7, 7), (3, 5), (1000, 40)]:
        cut = [shard_rows(num_rows, shard=r, num_shards=num_shards) for r in range(num_shards)]
        assert [row for rows in cut for row in rows] == list(range(num_rows))
        for r, rows in enumerate(cut, start=1):
            assert rows == range(round(num_rows / num_shards * (r - 1)), round(num_rows / num_shards * r))


@pytest.mark.parametrize("damage", ["short", "garbage", "empty"])
def test_a_damaged_shard_is_made_again(tmp_path: Path, damage: str) -> None:
    labels = some_labels(10)
    shards = LabelShards(tmp_path, card(), num_rows=10, num_shards=2)
    shards.begin()
    for shard in range(2):
        shards.write(shard, [labels[row] for row in shards.rows(shard)])
    path = next((tmp_path / "shards").glob("00001*"))
    content = path.read_bytes()
    middle = len(content) // 2
    replaced = {"short": content[:-40], "garbage": content[:middle] + b"\xff" * 9 + content[middle + 9 :], "empty": b""}
    path.write_bytes(replaced[damage])
    assert shards.missing() == [1]
    shards.write(1, [labels[row] for row in shards.rows(1)])
    assert_holds(shards.merge(), labels)


def test_shards_of_other_labels_are_not_continued(tmp_path: Path) -> None:
    LabelShards(tmp_path, card(), num_rows=10, num_shards=2).begin()
    for other in (card(codebook="other"), card(layer=6)):
        with pytest.raises(ValueError, match="shards of other labels"):
            LabelShards(tmp_path, other, num_rows=10, num_shards=2).begin()


def test_wrong_labels_are_refused_when_they_are_written(tmp_path: Path) -> None:
    shards = LabelShards(tmp_path, card(), num_rows=2, num_shards=1)
    shards.begin()
    with pytest.raises(ValueError, match="1 cuts instead of 2"):
        shards.write(0, [np.array([1])])
    for wrong in (9, -1):
        with pytest.raises(ValueError, match=r"outside 0 \.\.\. 8"):
            shards.write(0, [np.array([1]), np.array([wrong])])
    with pytest.raises(ValueError, match="num_clusters=40000 must be between 1 and 32768"):
        card(num_clusters=40000)


def test_a_card_that_contradicts_the_config_is_refused_with_every_fact(tmp_path: Path) -> None:
    write_store(tmp_path, card(), some_labels(3))
    with pytest.raises(ValueError, match="others than the config asks for") as error:
        LabelStore.open(tmp_path, num_clusters=500, rate_hz=50.0, layer=6, checkpoint="x", features="mfcc:torchaudio")
    for fact in ("num_clusters=9 instead of 500", "rate_hz=100.0 instead of 50.0", "layer=None", "checkpoint=None"):
        assert fact in str(error.value)
    assert "features" not in str(error.value)


def test_damaged_and_missing_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"card\.json is missing"):
        LabelStore.open(tmp_path)
    write_store(tmp_path, card(), [np.arange(9), np.arange(4)])
    content = (tmp_path / "labels.npy").read_bytes()
    (tmp_path / "labels.npy").write_bytes(content[:-2])
    with pytest.raises(ValueError, match="damaged labels"):
        LabelStore.open(tmp_path)
    np.save(tmp_path / "labels.npy", np.zeros(12, np.int16))
    with pytest.raises(ValueError, match="sizes disagree"):
        LabelStore.open(tmp_path)


def manifest(folder: Path, names: list[str]) -> ManifestIndex:
    cuts = []
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        num_samples = 4000 + 320 * number
        soundfile.write(path, np.random.default_rng(number).uniform(-0.1, 0.1, num_samples), RATE)
        recording = Recording.from_file(path, recording_id=path.stem)
        cuts.append(MonoCut(path.stem, 0.0, recording.duration, 0, [], recording=recording))
    write_manifest(cuts, folder / "train.jsonl")
    return ManifestIndex.open(folder / "train.jsonl")


def test_the_print_of_a_manifest_knows_order_lengths_and_ids(tmp_path: Path) -> None:
    index = manifest(tmp_path / "one", ["a.flac", "b.flac"])
    moved = manifest(tmp_path / "two", ["there/a.flac", "there/b.flac"])
    assert manifest_fingerprint(index) == manifest_fingerprint(moved)
    for number, names in enumerate([["a.flac", "c.flac"], ["b.flac", "a.flac"], ["a.flac", "b.flac", "c.flac"]]):
        assert manifest_fingerprint(index) != manifest_fingerprint(manifest(tmp_path / f"other{number}", names))


@pytest.mark.parametrize("name", ["a b-1", 'quo"ted', "back\\slash", "\u0434\u0430", ""])
def test_the_print_is_the_same_however_a_line_is_written(name: str, tmp_path: Path) -> None:
    index = manifest(tmp_path, ["a.flac"])
    record = json.loads((tmp_path / "train.jsonl").read_text()) | {"id": name}
    last = {key: value for key, value in record.items() if key != "id"} | {"id": name}
    lines = [json.dumps(record), json.dumps(record, ensure_ascii=False), json.dumps(last),
             json.dumps(record, separators=(",", ":"))]  # fmt: skip
    before, prints = manifest_fingerprint(index), set()
    for line in lines:
        (tmp_path / "train.jsonl").write_text(line + "\n", encoding="utf-8")
        build_index(tmp_path / "train.jsonl")
        prints.add(manifest_fingerprint(ManifestIndex.open(tmp_path / "train.jsonl")))
    assert len(prints) == 1 and prints != {before}


def test_stores_of_before_there_were_ids_are_accepted(tmp_path: Path) -> None:
    index, other = manifest(tmp_path / "one", ["a.flac", "b.flac"]), manifest(tmp_path / "two", ["a.flac"])
    old = hashlib.blake2b(index.durations_s.tobytes(), digest_size=16).hexdigest()
    write_store(tmp_path / "labels", card(old), some_labels(2))
    LabelStore.open(tmp_path / "labels", manifest=manifest_fingerprint(index))
    with pytest.raises(ValueError, match="manifest="):
        LabelStore.open(tmp_path / "labels", manifest=manifest_fingerprint(other))


def test_the_predecessors_files_are_written_and_read(tmp_path: Path) -> None:
    index = manifest(tmp_path / "speech", ["1/a.flac", "2/b.flac", "2/c.flac"])
    labels = [np.array([3, 3, 8]), np.array([0]), np.array([5, 1])]
    store = write_store(tmp_path / "labels", card(manifest_fingerprint(index)), labels)
    tsv, text = tmp_path / "train.tsv", tmp_path / "label_train.pt"
    export_labels(store, index, tsv=tsv, labels=text)
    assert text.read_text() == "3 3 8\n0\n5 1\n"
    assert tsv.read_text() == f"{tmp_path / 'speech'}\n1/a.flac\t4000\n2/b.flac\t4320\n2/c.flac\t4640\n"
    imported = import_labels(tsv, text, index, tmp_path / "again", store.card)
    assert_holds(imported, labels)


def test_utterances_are_found_by_path_whatever_their_order(tmp_path: Path) -> None:
    index = manifest(tmp_path, ["a.flac", "b.flac"])
    write_tsv(tmp_path / "t.tsv", Utterances(str(tmp_path), ["b.flac", "z.flac", "a.flac"], [1, 2, 3]))
    write_labels(tmp_path / "t.km", [np.array([1, 1]), np.array([7]), np.array([2])])
    store = import_labels(tmp_path / "t.tsv", tmp_path / "t.km", index, tmp_path / "labels", card())
    assert_holds(store, [np.array([2]), np.array([1, 1])])


def test_text_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    index = manifest(tmp_path, ["a.flac", "b.flac"])
    write_tsv(tmp_path / "t.tsv", Utterances(str(tmp_path), ["a.flac"], [1]))
    write_labels(tmp_path / "t.km", [np.array([1])])
    with pytest.raises(ValueError, match=r"no labels for 1 of 2 cuts, first .*b\.flac"):
        import_labels(tmp_path / "t.tsv", tmp_path / "t.km", index, tmp_path / "labels", card())
    write_labels(tmp_path / "t.km", [np.array([1])] * 2)
    with pytest.raises(ValueError, match="2 lines for the 1 utterances"):
        import_labels(tmp_path / "t.tsv", tmp_path / "t.km", index, tmp_path / "labels", card())
    (tmp_path / "t.km").write_text("1 2\n3 x\n")
    with pytest.raises(ValueError, match=r"t\.km:2: expected integers"):
        list(read_labels(tmp_path / "t.km"))
    (tmp_path / "t.tsv").write_text("/root\na.flac 12\n")
    with pytest.raises(ValueError, match=r"t\.tsv:2: expected path<TAB>samples"):
        read_tsv(tmp_path / "t.tsv")
