"""The copy of the code that a chain runs."""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from core.rundir.ledger import record_link
from launchers.chain import snapshot
from launchers.chain.snapshot import FOLDER, LOCK, UNUSED_S, take_snapshot
from tests.launchers.conftest import Launcher


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small repository with one file of every kind."""
    root = tmp_path / "check out"
    files = {
        ".gitignore": "/data/\n/slurm/cluster.sh\n__pycache__/\n",
        "core/model.py": "old",
        "launch.sh": "#!/bin/bash\n",
        "data/cuts.jsonl": "{}",
        "slurm/cluster.sh": "export A=1",
        "slurm/env.sh": "tracked",
        "core/__pycache__/model.pyc": "",
        "core/new.py": "new",
        "recipes/mine/train.py": "new",
        "recipes/mine/notes.txt": "new",
        "manifests/big/a.flac": "sound",
        "old name.py": "tracked",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "launch.sh").chmod(0o755)
    git(root, "init", "--quiet")
    git(root, "add", ".gitignore", "core/model.py", "launch.sh", "old name.py", "slurm/env.sh")
    return root


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-C", root, *words], check=True)


def test_what_is_copied_and_what_is_linked(checkout: Path, tmp_path: Path) -> None:
    copy, new = take_snapshot(checkout, tmp_path / "runs")
    real = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file() and not path.is_symlink()}
    links = {str(path.relative_to(copy)): os.readlink(path) for path in copy.rglob("*") if path.is_symlink()}
    tracked = {".gitignore", "core/model.py", "launch.sh", "old name.py", "slurm/env.sh"}
    assert real == tracked | {"core/new.py", "recipes/mine/train.py", "slurm/cluster.sh"}
    assert set(links) == {"data", "manifests", "recipes/mine/notes.txt"}
    assert links["data"] == str(checkout / "data")
    assert new == ["core/new.py", "recipes/mine/train.py"]
    assert os.access(copy / "launch.sh", os.X_OK)
    assert (copy / "data/cuts.jsonl").read_text() == "{}", "a relative path means what it means in the checkout"


def test_what_a_link_prepares_lies_in_the_checkout(checkout: Path, tmp_path: Path) -> None:
    """Also where it is the first that has data."""
    shutil.rmtree(checkout / "data")
    copy = take_snapshot(checkout, tmp_path / "runs").root
    (copy / "data/prepared.jsonl").write_text("{}")
    assert (checkout / "data/prepared.jsonl").read_text() == "{}"
    assert take_snapshot(checkout, tmp_path / "runs").root == copy


def test_an_edit_makes_another_copy_and_leaves_the_first(checkout: Path, tmp_path: Path) -> None:
    first = take_snapshot(checkout, tmp_path / "runs").root
    assert take_snapshot(checkout, tmp_path / "runs").root == first
    (checkout / "core/model.py").write_text("edited")
    second = take_snapshot(checkout, tmp_path / "runs").root
    assert [(root / "core/model.py").read_text() for root in (first, second)] == ["old", "edited"]
    (checkout / "core/model.py").unlink()
    third = take_snapshot(checkout, tmp_path / "runs").root
    assert not (third / "core/model.py").exists()
    assert names(first.parent) == sorted([first.name, second.name, third.name]), "nothing half-made"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(LOCK))


def copy_of(checkout: Path, runs: Path, model: str) -> Path:
    """The copy of the checkout with this model in it."""
    (checkout / "core/model.py").write_text(model)
    return take_snapshot(checkout, runs).root


def age(copy: Path, seconds: float) -> None:
    os.utime(copy, (time.time() - seconds,) * 2)


def test_a_copy_goes_when_no_ledger_names_it(checkout: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    needed, lost, fresh = (copy_of(checkout, runs, model) for model in ("needed", "lost", "fresh"))
    half = runs / FOLDER / f".{lost.name}.killed"
    half.mkdir()
    (runs / "a").mkdir()
    record_link(runs / "a", event="submitted", link=1, code=str(needed))
    for copy, days in ((needed, 2), (lost, 2), (fresh, 0.5), (half, 2)):
        age(copy, days * UNUSED_S)
    latest = copy_of(checkout, runs, "latest")
    assert names(runs / FOLDER) == sorted(path.name for path in (needed, fresh, latest))
    assert (checkout / "data/cuts.jsonl").exists(), "what a copy links to stays"
    shutil.rmtree(runs / "a")
    assert copy_of(checkout, runs, "needed") == needed, "taken again"
    take_snapshot(checkout, runs)
    assert needed.exists()
    age(needed, 2 * UNUSED_S)
    copy_of(checkout, runs, "latest")
    assert names(runs / FOLDER) == sorted(path.name for path in (fresh, latest))


def test_a_copy_that_is_taken_while_it_is_removed_is_made_anew(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    old = copy_of(checkout, runs, "old")
    age(old, 2 * UNUSED_S)
    (checkout / "core/model.py").write_text("new")
    removing, go_on, rename = threading.Event(), threading.Event(), os.rename

    def halting(source: Path, target: Path) -> None:
        if source == old:
            removing.set()
            assert go_on.wait(60)
        rename(source, target)

    monkeypatch.setattr(snapshot.os, "rename", halting)
    remover = threading.Thread(target=take_snapshot, args=(checkout, runs))
    remover.start()
    assert removing.wait(60)
    (checkout / "core/model.py").write_text("old")
    taker = threading.Thread(target=take_snapshot, args=(checkout, runs))
    taker.start()
    taker.join(0.3)
    assert taker.is_alive(), "it waits"
    go_on.set()
    for thread in (remover, taker):
        thread.join(60)
    assert (old / "core/model.py").read_text() == "old"


def test_a_dry_run_writes_nothing(checkout: Path, tmp_path: Path) -> None:
    would_be = take_snapshot(checkout, tmp_path / "runs", is_dry=True).root
    assert not (tmp_path / "runs").exists()
    assert take_snapshot(checkout, tmp_path / "runs").root == would_be


def test_an_unpacked_archive_has_no_git(checkout: Path, tmp_path: Path) -> None:
    subprocess.run(["rm", "-rf", checkout / ".git"], check=True)
    copy = take_snapshot(checkout, tmp_path / "runs").root
    assert not (copy / "core").is_symlink()
    assert (copy / "data").is_symlink()
    assert not list(copy.rglob("__pycache__"))


def test_a_chain_runs_the_code_it_was_launched_with(launcher: Launcher, runs: Path, sub: Path) -> None:
    """Links 1 and 2 of one chain, with an edit of the .sub file while link 1 runs."""
    sub.write_text(sub.read_text() + f"sed -i 's/fake_recipe/no_such_module/' '{sub}'\npwd\n")
    assert launcher("-n1", sub, "fake.total=3").returncode == 0
    assert "no_such_module" in sub.read_text()
    log = next((runs / "fake/logs/link_1").glob("*.out")).read_text()
    assert str(runs / ".code") in log, "the link worked in the copy"
    assert "fake_recipe" in (runs / "fake/logs/fake.sub").read_text()


def test_live_runs_the_checkout_and_warns(launcher: Launcher, runs: Path, sub: Path) -> None:
    live = launcher("--live", sub, "fake.total=3")
    assert live.returncode == 0, live.stderr
    assert "warning: links run what" in live.stdout
    assert not (runs / ".code").exists()
