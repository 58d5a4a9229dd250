"""SLURM's own programs: found on this machine, installed by apt as root, or unpacked into a cache as anybody else."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
APT_TIMEOUT_S = 300.0


class ProgramsError(RuntimeError):
    """SLURM cannot be had here; the message says what to do."""


@dataclass(frozen=True)
class Programs:
    """Where SLURM is: in the system, or unpacked under `root`."""

    root: Path | None = None

    @property
    def libraries(self) -> Path | None:
        return None if self.root is None else self.root / "usr/lib" / f"{platform.machine()}-linux-gnu"

    @property
    def plugins(self) -> Path | None:
        return None if self.libraries is None else self.libraries / "slurm-wlm"

    def environment(self) -> dict[str, str]:
        """What a process needs to find them."""
        path = [*os.environ.get("PATH", "").split(":"), *SYSTEM_PATH]
        if self.root is None:
            return {"PATH": ":".join(dict.fromkeys(filter(None, path)))}
        own = [str(self.root / "usr/sbin"), str(self.root / "usr/bin")]
        libraries = [str(self.libraries), str(self.plugins), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            "PATH": ":".join(dict.fromkeys(filter(None, own + path))),
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        }

    def find(self, name: str) -> str | None:
        return shutil.which(name, path=self.environment()["PATH"])


def find_or_install() -> Programs:
    """SLURM's programs, by whatever way works here. ProgramsError where none does."""
    system = Programs()
    if _is_complete(system):
        return system
    unpacked = Programs(_cache())
    if _is_complete(unpacked):
        return unpacked
    if shutil.which("apt-get") is None:
        raise ProgramsError(f"SLURM is not installed and there is no apt-get; install {', '.join(PACKAGES)} yourself")
    if os.geteuid() == 0:
        _install()
        found = system
    else:
        _unpack(_cache())
        found = unpacked
    if lacking := [name for name in NEEDED if found.find(name) is None]:
        raise ProgramsError(f"after apt-get there is still no {', '.join(lacking)}")
    return found


def _is_complete(programs: Programs) -> bool:
    return all(programs.find(name) for name in NEEDED)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baton" / "slurm"


def _install() -> None:
    command = ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
    try:
        _apt(command)
    except ProgramsError:  # the lists of a fresh container are empty or old
        _apt(["update", "-qq"])
        _apt(command)


def _unpack(root: Path) -> None:
    """Download the packages, and what they depend on and is not installed, and unpack them; root is not needed."""
    work = root.with_name(f"{root.name}.{os.getpid()}")
    (work / "lists/partial").mkdir(parents=True)
    own_lists = ["-o", f"Dir::State::lists={work}/lists", "-o", f"Dir::Cache={work}", "-o", "Debug::NoLocking=1"]
    simulate = ["install", "--simulate", "--no-install-recommends", *PACKAGES]
    try:
        options: list[str] = []
        try:
            plan = _apt(simulate)
        except ProgramsError:
            options = own_lists
            _apt([*options, "update", "-qq"])
            plan = _apt([*options, *simulate])
        names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
        _apt([*options, "download", *names], folder=work)
        for package in work.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, work / "tree"], check=True)
        for program in (work / "tree/usr/sbin").glob("*-wlm"):  # Debian's alternatives, set up by an installation
            program.with_name(program.name.removesuffix("-wlm")).symlink_to(program.name)
        (work / "tree").replace(root)
    except OSError as error:
        if not root.exists():  # else somebody else was faster
            raise ProgramsError(f"SLURM could not be unpacked into {root}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _apt(arguments: list[str], *, folder: Path | None = None) -> str:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        answer = subprocess.run(
            ["apt-get", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=APT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise ProgramsError(f"apt-get {arguments[0]} did not end in {APT_TIMEOUT_S:.0f} s") from None
    if answer.returncode != 0:
        said = answer.stderr.strip().splitlines()[-3:]
        raise ProgramsError("SLURM could not be installed: apt-get said: " + "; ".join(said))
    return answer.stdout
