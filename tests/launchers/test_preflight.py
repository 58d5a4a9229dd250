"""preflight finds what would go wrong."""

from pathlib import Path

import pytest

from launchers import preflight
from tests.launchers.conftest import Launcher, write_sub


def test_all_is_well(launcher: Launcher, sub: Path) -> None:
    answer = launcher("preflight", sub)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for check in ("header", "python", "packages", "disk", "torch", "cluster", "config"):
        assert f"\n {check}" in answer.stdout
    assert "NO" not in answer.stdout


@pytest.mark.parametrize(
    "setup, says",
    [
        ("if true; then", "syntax error"),
        (
            "echo 'python -m recipes.x.train' >/dev/null; echo 'my.yaml:3: optim.lt: unknown key' >&2; exit 85",
            "optim.lt",
        ),
    ],
)
def test_what_is_wrong_is_shown(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runs: Path,
    tmp_path: Path,
    setup: str,
    says: str,
) -> None:
    monkeypatch.setattr(preflight, "_device", lambda: [])
    monkeypatch.setattr(preflight, "missing", lambda: ["lhotse"])
    monkeypatch.setattr(preflight, "LEAST_FREE_GIB", 1e9)
    assert preflight.preflight(write_sub(tmp_path / "x.sub", setup=setup), overrides=[]) == 85
    output = capsys.readouterr().out
    assert says in output
    assert "lhotse" in output
    assert output.count("NO") == 3


def test_a_bad_header_is_shown_with_its_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(preflight, "_device", lambda: [])
    assert preflight.preflight(write_sub(tmp_path / "x.sub", header="#SBATCH --tiem=3"), overrides=[]) == 85
    assert "did you mean --time?" in " ".join(capsys.readouterr().out.split())
