"""The reader of #SBATCH lines against what sbatch itself documents."""

from pathlib import Path

import pytest

from launchers.slurm.header import HeaderError, parse_time, read_header


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/bash", *lines, "echo work", "#SBATCH --nodes=99", ""]))
    return path


def test_every_way_to_write_an_option(tmp_path: Path) -> None:
    header = read_header(
        write(
            tmp_path / "a.sub",
            "# a remark",
            "#SBATCH --job-name=my.run-1",
            "##SBATCH --nodes=7",
            "",
            "#SBATCH -N 2 -t01:30:00   # two options, a remark",
            "#SBATCH --ntasks-per-node 4",
            '#SBATCH --comment="two words"',
            "#SBATCH --gres=gpu:a100:4,shard:1 --requeue --exclusive=user",
            "#SBATCH\t-p=short",
        )
    )
    assert dict(header.options) == {
        "job-name": "my.run-1",
        "nodes": "2",
        "time": "01:30:00",
        "ntasks-per-node": "4",
        "comment": "two words",
        "gres": "gpu:a100:4,shard:1",
        "requeue": "",
        "exclusive": "user",
        "partition": "short",
    }
    assert (header.num_nodes, header.tasks_per_node, header.gpus_per_node) == (2, 4, 4)
    assert header.time_limit_s == 5400


@pytest.mark.parametrize(
    "lines, tasks, gpus",
    [
        (["--ntasks=8", "--nodes=3"], 3, 0),
        (["--ntasks-per-node=2", "--gpus-per-task=2"], 2, 4),
        (["--gpus=v100:6", "--nodes=2-4"], 1, 3),
        (["--gpus-per-node=h100:2", "--ntasks-per-gpu=2"], 4, 2),
        (["--gres=gpu"], 1, 1),
    ],
)
def test_tasks_and_gpus_of_a_node(tmp_path: Path, lines: list[str], tasks: int, gpus: int) -> None:
    header = read_header(write(tmp_path / "a.sub", "#SBATCH -J x", *(f"#SBATCH {line}" for line in lines)))
    assert (header.tasks_per_node, header.gpus_per_node) == (tasks, gpus)


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("90", 5400),
        ("2:30", 150),
        ("01:02:03", 3723),
        ("2-0", 172800),
        ("1-12:30", 131400),
        ("1-00:00:05", 86405),
        ("UNLIMITED", None),
    ],
)
def test_time_formats_of_slurm(text: str, seconds: int | None) -> None:
    assert parse_time(text) == seconds


def test_all_mistakes_at_once_with_their_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.sub",
        "#SBATCH --tiem=1:00:00",  # line 2
        "#SBATCH nodes=2",
        "#SBATCH --time=tomorrow",
        "#SBATCH --partition",
        '#SBATCH --comment="open',
        "#SBATCH -Z 3",
        "#SBATCH --array=1-4",
        "#SBATCH --nodes=2",
        "#SBATCH --nodes=3",
        "#SBATCH --gpus-per-node=two",
        "#SBATCH",
        "#SBATCHES",
    )
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    found = {int(problem.split(":")[1]): problem.split(": ", 1)[1] for problem in caught.value.problems}
    assert sorted(found) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13]
    assert "did you mean --time?" in found[2]
    assert "expected an option" in found[3]
    assert "days-hours" in found[4]
    assert "a value is missing" in found[5]
    assert "use -n" in found[8]
    assert "line 9 says 2" in found[10]
    assert "not a number" in found[11]
    assert "no job name" in found[1]


@pytest.mark.parametrize("name", ["a b", "x/../y", "$(reboot)", "-" * 65, "a;b", "\u00e9"])
def test_job_names_that_could_do_harm_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(HeaderError, match="only letters, digits"):
        read_header(write(tmp_path / "a.sub", f"#SBATCH --job-name='{name}'"))


def test_files_that_sbatch_would_not_take(tmp_path: Path) -> None:
    path = tmp_path / "windows.sub"
    path.write_bytes(b"#SBATCH --job-name=x\r\necho work\r\n")
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    assert caught.value.problems == [
        f"{path}:1: its lines end as on Windows, which sbatch and bash refuse; mend it with: dos2unix",
        f"{path}:1: expected `#!/bin/bash`: sbatch takes no script without",
    ]
    path.write_bytes(b"#!/bin/bash\n\xff\xfe")
    with pytest.raises(HeaderError, match="not a text in UTF-8"):
        read_header(path)
