"""Files with pickles inside are checked here before a library opens them: only known torch classes may be named.

A pickle is a program: it imports and calls what it names. Torch's checkpoint formats contain pickles (`.metadata`
of torch DCP, `data.pkl` in what `torch.save` writes). A check runs that program with stand-ins in the place of
everything that it names: nothing real is imported, made, called or changed, and a name that is not on the list, or
an unexpected use of one that is, ends it with a ValueError naming the file and the name.
"""

import io
import os
import pickle
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch


class _Sealed(type):
    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise ValueError(f"sets {name} on a class")


class _StandIn(metaclass=_Sealed):
    """A replacement of a class: takes any arguments, state and items, and does nothing."""

    def __new__(cls, *arguments: object) -> "_StandIn":
        return object.__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


class _Fixed(_StandIn):
    """A replacement of a function, an enumeration or a constant: what it gives may not be changed."""

    def __setstate__(self, state: object) -> None:
        raise ValueError("changes the state of a constant")

    def __setitem__(self, key: object, value: object) -> None:
        raise ValueError("changes an item of a constant")


class _MemoryFormat(_Fixed):
    """A replacement of DCP's enumeration of memory formats."""


class _GetAttribute(_Fixed):
    """A replacement of `getattr`, by which Python 3.11.0 to 3.11.3 pickle a member of an enumeration."""

    def __init__(self, *arguments: object) -> None:
        match arguments:
            case (owner, str(name)) if owner is _MemoryFormat and name.startswith("TORCH_"):
                return
        raise ValueError("refused: builtins.getattr")


Allowed = Mapping[tuple[str, str], type[_StandIn]]

_DTYPES = {("torch", name): _Fixed for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_DCP = "torch.distributed.checkpoint"
_DCP_CLASSES = (
    "Metadata",
    "TensorStorageMetadata",
    "TensorProperties",
    "ChunkStorageMetadata",
    "MetadataIndex",
    "StorageMeta",
)

# BytesStorageMetadata is left out on purpose: it stands for an arbitrary Python object, which DCP loads unsafely.
DCP_METADATA: Allowed = {
    **{(f"{_DCP}.metadata", name): _StandIn for name in _DCP_CLASSES},
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"): _MemoryFormat,
    ("builtins", "getattr"): _GetAttribute,
    (f"{_DCP}.filesystem", "_StorageInfo"): _StandIn,
    ("pathlib", "PosixPath"): _Fixed,
    ("torch", "Size"): _Fixed,
    ("torch.serialization", "_get_layout"): _Fixed,
    **_DTYPES,
}

TENSORS: Allowed = {
    ("collections", "OrderedDict"): _StandIn,
    ("torch", "Size"): _Fixed,
    ("torch", "device"): _Fixed,
    ("torch.storage", "UntypedStorage"): _Fixed,
    ("torch.serialization", "_get_layout"): _Fixed,
    **{
        ("torch._utils", name): _Fixed
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
    },
    **{("torch", storage.__name__): _Fixed for storage in torch._storage_classes if storage.__module__ == "torch"},
    **_DTYPES,
}


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that works on stand-ins for what `allowed` lists; any other name is a ValueError."""

    def __init__(self, file: BinaryIO, *, allowed: Allowed, takes_storages: bool = False) -> None:
        super().__init__(file, fix_imports=False)
        self._allowed = allowed
        self._takes_storages = takes_storages

    def find_class(self, module: str, name: str) -> type[_StandIn]:
        stand_in = self._allowed.get((module, name))
        if stand_in is None:
            raise ValueError(f"refused: {module}.{name}")
        return stand_in

    def persistent_load(self, pid: Any) -> _StandIn:
        if not self._takes_storages:
            raise ValueError("refused: a reference to something outside of the pickle")
        return _Fixed()


def check_pickle(content: bytes, *, path: Path, allowed: Allowed = DCP_METADATA, takes_storages: bool = False) -> None:
    """Raise ValueError naming `path` and what is refused, unless the pickle names only what is allowed."""
    try:
        RestrictedUnpickler(io.BytesIO(content), allowed=allowed, takes_storages=takes_storages).load()
    except Exception as error:
        raise ValueError(f"{path} is not opened: its pickle is not one of a checkpoint ({error})") from error


def load_pickle(path: Path) -> Any:
    """Return the content of a DCP `.metadata` file, loaded from the very bytes that were checked."""
    check_regular(path)
    content = path.read_bytes()
    check_pickle(content, path=path)
    try:
        return pickle.loads(content, fix_imports=False)
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def check_torch_file(path: Path) -> None:
    """Raise ValueError unless a file that `torch.save` wrote holds nothing but tensors in plain containers.

    Stricter than zip allows, so that torch's reader cannot see another `data.pkl` than the one checked here.
    """
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename.lower() for member in members]
            if len(set(names)) < len(names) or min((m.header_offset for m in members), default=1) != 0:
                raise ValueError("two members of one name, or something before the first member")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("compressed members")
            if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
                raise ValueError("a TorchScript program")
            pickles = [member for member in members if member.filename.lower().endswith(".pkl")]
            if len(pickles) != 1:
                raise ValueError(f"{len(pickles)} pickles, expected one data.pkl")
            content = archive.read(pickles[0])
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not opened: it is not a file of tensors ({error})") from error
    check_pickle(content, path=path, allowed=TENSORS, takes_storages=True)


def check_regular(path: Path) -> None:
    """Raise ValueError for a symlink, a pipe or anything else that is no plain file."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError(f"{path} is not opened: it is not a plain file (a symlink, perhaps)")


def check_tree(directory: Path) -> list[Path]:
    """Return all files under a directory, sorted; ValueError if it holds more than plain files and directories."""
    if not stat.S_ISDIR(os.lstat(directory).st_mode):
        raise ValueError(f"{directory} is not a plain directory (a symlink, perhaps)")
    files: list[Path] = []
    for parent, folders, names in os.walk(directory):
        for folder in folders:
            if not stat.S_ISDIR(os.lstat(Path(parent, folder)).st_mode):
                raise ValueError(f"{Path(parent, folder)} is a symlink; a checkpoint holds only plain files")
        for name in names:
            check_regular(Path(parent, name))
            files.append(Path(parent, name))
    return sorted(files)
