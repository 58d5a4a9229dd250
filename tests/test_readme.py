"""What the pages and the scripts' own words show is true: links lead somewhere, commands are understood.

Commands are parsed by the programs that they name, and stopped before anything is done.
"""

import getopt
import importlib
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser as torchrun_parser

import launchers.here.preflight
from launchers.cli import main as launch
from tests.launchers.test_repository import tracked_files

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "recipes/lmu_gigaspeech"
PIPELINE = "tests/launchers/pipeline.yaml"
PAGES = [path for path in tracked_files() if path.suffix in (".md", ".ipynb")]
# Comments and docstrings that show commands.
SCRIPTS = [path for folder in ("recipes", "manifests") for path in (ROOT / folder).rglob("*") if path.is_file()
           and path.suffix in (".py", ".yaml", ".sub")]  # fmt: skip
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
START = r"(?:\./(?:launch|run|test)\.sh|slurm/(?:minicluster|get_interactive_node\.sh)|python -m|torchrun|deepspeed)"
# What stands for something that the reader knows.
STANDS_FOR = {"FILE.sub": f"{RECIPE}/demo.sub", "recipes/NAME": RECIPE, "FILE": f"{RECIPE}/demo.yaml", "-nN": "-n2",
              "N": "2", "S": "7", "K": "1", "RUN": "some_run", "NAME": "some_run",
              "FILE.yaml": PIPELINE, "pipeline.yaml": PIPELINE}  # fmt: skip
SUBCOMMANDS = ("status", "logs", "cancel", "extend", "preflight", "compare", "completion")


def text_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def commands_in(path: Path) -> Iterator[str]:
    """Commands in code spans and lines, without what explains them behind two spaces."""
    text = text_of(path)
    if path.suffix in (".md", ".ipynb"):
        yield from re.findall(rf"`({START} [^`\n]+|\./test\.sh)`", text)
        text = re.sub(r"^( *deepspeed .*) \\\n *", r"\1 ", text, flags=re.MULTILINE)  # its module is in the next line
        lines = re.findall(rf"^ *({START}\b.*)$", text, flags=re.MULTILINE)
    else:
        lines = re.findall(rf"^(?:#.*? |srun | *)({START} .+)$", text, flags=re.MULTILINE)
    for line in lines:
        yield re.split(r"  | \\$", line)[0]


COMMANDS = sorted({(str(path.relative_to(ROOT)), command) for path in PAGES + SCRIPTS for command in commands_in(path)})


def words_of(command: str) -> list[str]:
    """The command's words, what is optional included, with values for what stands for something."""
    words = shlex.split(re.sub(r'[\[\]]|\.\.\.|"\$@"', " ", command))
    return [STANDS_FOR.get(word, word) for word in words if word != "key=value"]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text_of(path), flags=re.MULTILINE)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(text_of(path)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path}: {link}"
        assert not anchor or anchor in anchors(target), f"{path}: {link}"


def test_commands_and_links_are_found() -> None:
    found = [command for name, command in COMMANDS if name == "README.md"]
    for expected in ("./launch.sh -n2 recipes/lmu_gigaspeech/demo.sub", "./test.sh", "./run.sh recipes/lmu_gigaspeech",
                     "./launch.sh extend RUN -n N [key=value ...]", "./launch.sh --help", "slurm/minicluster down",
                     "slurm/get_interactive_node.sh -G 2 -t 01:00:00"):  # fmt: skip
        assert expected in found
    for name in ("train.py", "transcribe.py", "demo.yaml", "job_4gpu.sub", "README.md"):
        assert any(where == f"{RECIPE}/{name}" for where, _ in COMMANDS), name
    assert len(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))) >= 5


@pytest.mark.parametrize("where, command", COMMANDS, ids=[f"{where}: {command}" for where, command in COMMANDS])
def test_commands_are_understood(
    where: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    monkeypatch.setattr(launchers.here.preflight, "preflight", lambda sub, **_: 0 if sub.exists() else 1)
    program, *words = words_of(command)
    if program == "./launch.sh":
        check_launch(words)
    elif program == "./run.sh":
        check_run(words)
    elif program == "./test.sh":
        assert all((ROOT / word).exists() for word in words if "/" in word)
    elif program == "slurm/minicluster":
        check_minicluster(words)
    elif program == "slurm/get_interactive_node.sh":
        script = (ROOT / program).read_text(encoding="utf-8")
        (options,) = re.findall(r"getopts (\S+) option", script)
        assert getopt.getopt(words, options)[1] == []
    elif program == "deepspeed":
        from deepspeed.launcher.runner import parse_args as deepspeed_arguments

        typed = deepspeed_arguments(words)
        assert typed.module and typed.no_local_rank
        check_module(typed.user_script, typed.user_args, capsys)
    elif program == "torchrun":
        typed = torchrun_parser().parse_args(words)
        check_module(typed.training_script, typed.training_script_args, capsys)
    else:
        check_module(words[1], words[2:], capsys)
    assert not list(tmp_path.iterdir()), "nothing is to be done"


def check_launch(words: list[str]) -> None:
    if words == ["--help"]:
        with pytest.raises(SystemExit, match=r"^0$"):
            launch(words)
    elif words[0] == "preflight":
        assert launch(words) == 0
    elif words[0] == "bench":  # a program of its own
        check_config("core.bench.__main__", words[1:])
    elif words[0] in SUBCOMMANDS:
        launch(words)  # SystemExit where they are not understood; the run that is named need not exist
    else:
        assert launch([*words, "--cluster", "local", "--dry-run"]) == 0


def check_minicluster(words: list[str]) -> None:
    """Its words, and the command that its shell is to run."""
    loader, before = SourceFileLoader("minicluster", str(ROOT / "slurm" / "minicluster")), list(sys.path)
    spec = importlib.util.spec_from_loader("minicluster", loader)
    assert spec is not None
    minicluster = importlib.util.module_from_spec(spec)
    loader.exec_module(minicluster)
    sys.path[:] = before  # it is a program, and puts the repository first
    typed = minicluster._parser().parse_args(words)
    if typed.command == "shell" and typed.words:
        assert typed.words[0] == "./launch.sh"
        check_launch(typed.words[1:])


def check_run(words: list[str]) -> None:
    if words[0] in ("bench", "check"):
        assert f'if [ "$1" = {words[0]} ]' in (ROOT / "run.sh").read_text(encoding="utf-8")
        return
    assert (ROOT / words[0] / "train.py").exists()
    check_config(words[0].replace("/", ".") + ".train", words[1:])


def check_module(module: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Recipes' scripts resolve their configuration; of any other the options must be among its own."""
    assert importlib.util.find_spec(module) is not None, module
    if "--config" in words:
        check_config(module, words)
        return
    with pytest.raises(SystemExit, match=r"^0$"):
        importlib.import_module(module).main(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {word for word in words if word.startswith("--")} <= options


def check_config(module: str, words: list[str]) -> None:
    """A configuration under runs/ is that of a run that the reader has: the demo's stands for it."""
    here = [f"{RECIPE}/demo.yaml" if word.startswith("runs/") else word for word in words]
    with pytest.raises(SystemExit, match=r"^0$"):
        importlib.import_module(module).main([*here, "--check"])
