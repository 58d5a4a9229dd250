"""Pickles in checkpoints: ours pass, bombs of every make are refused before they do anything."""

import builtins
import collections
import copyreg
import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, TensorProperties
from torch.distributed.checkpoint.state_dict_saver import save

from core.unpickling import DCP_METADATA, TENSORS, check_pickle, check_torch_file, check_tree, load_pickle

MODULE, CLASS = b"torch.distributed.checkpoint.metadata", b"Metadata"


class Bomb:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def unicode_op(text: bytes) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text


def stack_global(module: bytes, name: bytes) -> bytes:
    return unicode_op(module) + unicode_op(name) + pickle.STACK_GLOBAL


def program(*operations: bytes) -> bytes:
    return pickle.PROTO + b"\x04" + b"".join(operations) + pickle.STOP


def bombs(trace: Path) -> dict[str, bytes]:
    """Programs each of which would make the file `trace` if it were run."""
    shell, code = f"touch '{trace}'", f"open({str(trace)!r}, 'w').close()"
    call = unicode_op(code.encode()) + pickle.TUPLE1 + pickle.REDUCE
    return {
        "os.system": pickle.dumps(Bomb(os.system, shell)),
        "eval": pickle.dumps(Bomb(eval, code)),
        "exec, protocol 0": pickle.dumps(Bomb(exec, code), protocol=0),
        "exec, protocol 2": pickle.dumps(Bomb(exec, code), protocol=2),
        "nested in what is allowed": pickle.dumps(Metadata({"a": [collections.OrderedDict(x=Bomb(exec, code))]})),
        "as a key": pickle.dumps({(1, Bomb(exec, code)): 1}),
        "getattr": pickle.dumps(Bomb(getattr, Bomb(__import__, "os"), "system")),
        "getattr of a class that is allowed": pickle.dumps(Bomb(getattr, Metadata, "__init__")),
        "getattr of an enumeration": pickle.dumps(Bomb(getattr, _MEM_FORMAT_ENCODING, "__class__")),
        "__import__": pickle.dumps(Bomb(__import__, "os")),
        "apply by map": pickle.dumps(Bomb(list, Bomb(map, eval, [code]))),
        "copyreg": pickle.dumps(Bomb(copyreg._reconstructor, dict, dict, {"a": Bomb(exec, code)})),
        "copyreg extension": program(pickle.EXT1 + b"\x01", call),
        "stack global": program(stack_global(b"builtins", b"exec"), call),
        "stack global with a path": program(stack_global(MODULE, b"Metadata.__init__.__globals__"), call),
        "stack global of names that were stored": program(
            unicode_op(b"builtins"), pickle.MEMOIZE, unicode_op(b"exec"), pickle.STACK_GLOBAL, call
        ),
        "global": program(pickle.GLOBAL + b"posix\nsystem\n", unicode_op(shell.encode()), pickle.TUPLE1, pickle.REDUCE),
        "instance": program(
            pickle.MARK + pickle.UNICODE + shell.encode() + b"\n" + pickle.INST + b"posix\nsystem\n",
        ),
        "object": program(pickle.MARK, stack_global(b"posix", b"system"), unicode_op(shell.encode()), pickle.OBJ),
        "new object": program(stack_global(b"subprocess", b"Popen"), unicode_op(b"id"), pickle.TUPLE1, pickle.NEWOBJ),
        "persistent id": program(unicode_op(b"x"), pickle.BINPERSID),
        "the name of Python 2": program(pickle.GLOBAL + b"__builtin__\neval\n", call),
    }


@pytest.mark.parametrize("make", list(bombs(Path("x"))))
def test_a_bomb_is_refused_before_it_does_anything(make: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / ".metadata").write_bytes(bombs(trace)[make])
    with pytest.raises(ValueError, match=r"\.metadata is not opened"):
        load_pickle(tmp_path / ".metadata")
    assert not trace.exists()


def test_the_bombs_would_work(tmp_path: Path) -> None:
    """The bombs above are real: without the check, the same bytes make the file."""
    for name in (
        "os.system",
        "exec, protocol 0",
        "nested in what is allowed",
        "stack global",
        "global",
        "instance",
        "object",
    ):
        trace = tmp_path / name.replace(" ", "_").replace(",", "")
        pickle.loads(bombs(trace)[name])
        assert trace.exists(), name


def test_the_error_names_the_file_and_the_name(tmp_path: Path) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(pickle.dumps(Bomb(os.system, "true")))
    with pytest.raises(ValueError, match=rf"{path} .*refused: posix\.system"):
        load_pickle(path)


def test_a_class_that_is_allowed_cannot_be_changed(tmp_path: Path) -> None:
    """BUILD with slot state sets attributes: harmless on an instance, but on a class it would change the process."""
    change = pickle.NONE + pickle.EMPTY_DICT + unicode_op(b"marked") + pickle.NEWTRUE + pickle.SETITEM + pickle.TUPLE2
    function = program(stack_global(b"torch.serialization", b"_get_layout"), change, pickle.BUILD)
    member = program(
        stack_global(MODULE, b"_MEM_FORMAT_ENCODING"),
        pickle.BININT1 + b"\x00" + pickle.TUPLE1 + pickle.REDUCE,
        change,
        pickle.BUILD,
    )
    for content in (program(stack_global(MODULE, CLASS), change, pickle.BUILD), function, member):
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not opened"):
            load_pickle(path)
    assert not hasattr(Metadata, "marked")
    pickle.loads(program(stack_global(MODULE, CLASS), change, pickle.BUILD))
    assert Metadata.marked is True  # without the check it is
    del Metadata.marked


def test_what_dcp_writes_passes_and_reads_back(tmp_path: Path) -> None:
    tensors = {
        f"t.{dtype}": torch.zeros(2, 3, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8)
    }
    save(tensors, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    metadata = load_pickle(tmp_path / ".metadata")
    assert isinstance(metadata, Metadata)
    assert metadata.state_dict_metadata["t.torch.bfloat16"].properties.dtype == torch.bfloat16
    assert metadata == pickle.loads((tmp_path / ".metadata").read_bytes())


def test_memory_formats_as_older_pythons_pickle_them(tmp_path: Path) -> None:
    """Python 3.11.0 to 3.11.3 write `getattr(_MEM_FORMAT_ENCODING, "TORCH_...")` where others write a call."""

    class OldPython(pickle.Pickler):
        def reducer_override(self, item):
            return (getattr, (type(item), item.name)) if isinstance(item, _MEM_FORMAT_ENCODING) else NotImplemented

    content = io.BytesIO()
    OldPython(content, protocol=4).dump(TensorProperties())
    path = tmp_path / "file"
    path.write_bytes(content.getvalue())
    assert b"getattr" in content.getvalue()
    assert load_pickle(path) == TensorProperties()


def test_a_python_object_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    """DCP stores it as BYTE_IO and loads it without any restriction."""
    save({"object": {"lr": 0.1, "name": "x"}}, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    with pytest.raises(ValueError, match="BytesStorageMetadata"):
        load_pickle(tmp_path / ".metadata")


def test_damage_is_a_value_error(tmp_path: Path) -> None:
    save({"t": torch.zeros(3)}, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    content = (tmp_path / ".metadata").read_bytes()
    for cut in (0, 1, 10, len(content) // 2, len(content) - 1):
        (tmp_path / ".metadata").write_bytes(content[:cut])
        with pytest.raises(ValueError, match="is not opened"):
            load_pickle(tmp_path / ".metadata")


def test_links_pipes_and_other_oddities_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(pickle.dumps(1))
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(ValueError, match="not a plain file"):
            load_pickle(tmp_path / name)
    for oddity in ("file", "folder", "itself"):
        tree = tmp_path / oddity
        if oddity == "itself":
            tree.symlink_to(tmp_path / "file")
        else:
            tree.mkdir()
            (tree / "x").symlink_to(tmp_path / "real" if oddity == "file" else tmp_path, oddity == "folder")
        with pytest.raises(ValueError, match="symlink"):
            check_tree(tree)


# ---- what torch.save writes


def test_a_file_of_tensors_passes(tmp_path: Path) -> None:
    content = {
        "weight": torch.nn.Parameter(torch.randn(3, 2)),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "unsigned": torch.ones(2, dtype=torch.uint16),
        "shared": torch.arange(10)[2:5],
        "nested": [collections.OrderedDict(step=1, name="x"), (None, 2.5, True), torch.Size([2, 3]), torch.float32],
    }
    torch.save(content, tmp_path / "good.pt")
    check_torch_file(tmp_path / "good.pt")


@pytest.mark.parametrize("make", list(bombs(Path("x"))))
def test_a_bomb_in_a_torch_file_is_refused(make: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "bad.pt"
    torch.save({"t": torch.zeros(2)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as bad:
        for member in good.infolist():
            is_pickle = member.filename.endswith("data.pkl")
            bad.writestr(member.filename, bombs(trace)[make] if is_pickle else good.read(member))
    if make == "persistent id":  # there they stand for storages
        check_torch_file(path)
        return
    with pytest.raises(ValueError, match=r"bad\.pt is not opened"):
        check_torch_file(path)
    assert not trace.exists()


def test_objects_in_a_torch_file_are_refused(tmp_path: Path) -> None:
    import numpy as np

    for name, content in {
        "numpy": np.float64(1),
        "array": np.zeros(2),
        "path": tmp_path,
        "module": torch.nn.Linear(1, 1),
    }.items():
        torch.save({"x": content}, tmp_path / name)
        with pytest.raises(ValueError, match="refused: "):
            check_torch_file(tmp_path / name)


def test_archives_that_two_readers_may_read_differently_are_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(2), tmp_path / "good.pt")
    good = (tmp_path / "good.pt").read_bytes()
    path = tmp_path / "odd.pt"

    def archive(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", compression) as odd:
            for name, data in members:
                odd.writestr(name, data)
        return content.getvalue()

    pkl = pickle.dumps(1)
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = archive(("a/data.pkl", pkl), ("a/data.pkl", pkl))
    odd = {
        "twice": twice,
        "case": archive(("a/data.pkl", pkl), ("a/DATA.pkl", pkl)),
        "two": archive(("a/data.pkl", pkl), ("b/data.pkl", pkl)),
        "none": archive(("a/data", pkl)),
        "script": archive(("a/data.pkl", pkl), ("a/constants.pkl", pkl)),
        "compressed": archive(("a/data.pkl", pkl), compression=zipfile.ZIP_DEFLATED),
        "prefix": b"#!/bin/sh\n" + good,
        "no zip": pickle.dumps(0x1950A86A20F9469CFC6C) + pkl,
        "empty": b"",
        "truncated": good[:-30],
    }
    for content in odd.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"odd\.pt is not opened"):
            check_torch_file(path)


def test_nothing_dangerous_is_on_the_lists() -> None:
    names = {module for module, _ in [*DCP_METADATA, *TENSORS]}
    assert names == {
        "builtins", "collections", "pathlib", "torch", "torch._utils", "torch.distributed.checkpoint.filesystem",
        "torch.distributed.checkpoint.metadata", "torch.serialization", "torch.storage",
    }  # fmt: skip
    assert [name for module, name in DCP_METADATA if hasattr(builtins, name) and module == "builtins"] == ["getattr"]
    with pytest.raises(ValueError, match=r"refused: builtins\.getattr"):
        check_pickle(pickle.dumps(Bomb(getattr, torch.Size, "TORCH_X")), path=Path("x"))
