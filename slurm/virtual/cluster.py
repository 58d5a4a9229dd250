"""A SLURM cluster of virtual nodes on this machine: munged, slurmctld, and one slurmd a node.

Each node is a process tree in namespaces of its own, as far as this machine and user allow:

  as root             own process ids, host name, /etc/hosts and network: a node can die and can be cut off
  as anybody else     the same without the network, through a user namespace
  without namespaces  (in most containers) nodes share the host name; training over several of them does not work

With namespaces slurmctld can be reached from its nodes and this machine only, without them at any address of it.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from slurm.virtual.configuration import Address, free_port, write_configuration
from slurm.virtual.daemon import Daemon
from slurm.virtual.network import Network, NetworkError
from slurm.virtual.programs import NEEDED, Programs, ProgramsError, find_or_install

UP_TIMEOUT_S = 60.0
POLL_S = 0.1
LONGEST_PATH = 60  # of the directory: the paths of the sockets in it may have 107 characters
CONTROLLER, MUNGE = "slurmctld", "munged"
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--mount"]
AS_USER = ["--user", "--map-current-user", "--keep-caps"]
ISOLATIONS = (UNSHARE, [*UNSHARE, *AS_USER])
OWN = ("run", "state", "spool", "log", "dev", "slurm.conf", "gres.conf", "cgroup.conf", "plugstack.conf", "hosts",
       "munge.key", "cluster.json")  # fmt: skip


class ClusterError(RuntimeError):
    """What stands in the way, in words for the person who typed the command."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that was brought up in `folder`, wherever that was done."""

    folder: Path
    nodes: list[str]
    programs: Programs
    isolation: list[str]  # the command that gives a node its namespaces; empty where there are none
    network: Network | None

    @classmethod
    def up(cls, folder: Path, *, num_nodes: int, num_gpus: int) -> "Cluster":
        """Bring a cluster up and wait until all its nodes are idle."""
        folder = folder.absolute()
        _claim(folder)
        nodes = [f"n{number}" for number in range(1, num_nodes + 1)]
        try:
            programs = find_or_install()
        except ProgramsError as error:
            raise ClusterError(str(error)) from error
        isolation = next((list(command) for command in ISOLATIONS if _works(command)), [])
        network = None
        if isolation == UNSHARE:
            try:
                network = Network.make(nodes)
            except NetworkError as error:
                print(f"minicluster: the nodes share this machine's network: {error}")
        cluster = cls(folder, nodes, programs, isolation, network)
        cluster._save()
        try:
            controller = network.host_address if network else "127.0.0.1"
            write_configuration(
                folder,
                cluster._addresses(),
                controller=controller,
                is_bound=bool(isolation),
                num_gpus=num_gpus,
                programs=programs,
            )
            for name in (MUNGE, CONTROLLER, *nodes):
                cluster.start(name)
            cluster._wait_until_idle()
        except BaseException:
            cluster.stop()  # the logs stay
            raise
        return cluster

    @classmethod
    def at(cls, folder: Path) -> "Cluster":
        """The cluster in a folder. ClusterError if there is none."""
        try:
            facts = json.loads((folder / "cluster.json").read_text())
        except FileNotFoundError:
            raise ClusterError(f"there is no cluster in {folder}; bring one up with: minicluster up") from None
        root, network = facts["programs"]["root"], facts["network"]
        return cls(
            folder.absolute(),
            facts["nodes"],
            Programs(Path(root) if root else None),
            facts["isolation"],
            Network(network["number"]) if network else None,
        )

    def environment(self) -> dict[str, str]:
        """What a process needs to use this cluster and no other."""
        return {**self.programs.environment(), "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self, name: str) -> None:
        """Start a daemon: a node, slurmctld or munged."""
        if self.daemon(name).pid is not None:
            raise ClusterError(f"{name} runs already")
        if self.network and name in self.nodes:
            self.network.mend(name)
        environment = {**os.environ, **self.environment()}
        self.daemon(name).start(self._command(name), environment=environment, log=self.folder / "log" / f"{name}.log")

    def kill(self, name: str) -> None:
        """As a power failure does it: nothing of the node is left, and it tells nobody."""
        if self.daemon(name).pid is None:
            raise ClusterError(f"{name} does not run")
        self.daemon(name).stop(signal.SIGKILL)
        if name in self.nodes and not self.isolation:
            self._kill_processes_of(name)

    def restart(self, name: str) -> None:
        """A node comes back from whatever happened to it; slurmctld ends in order first, and knows its jobs again."""
        if name in self.nodes:
            if self.daemon(name).pid is not None:
                self.kill(name)
        else:
            self.daemon(name).stop()
        self.start(name)

    def cut(self, node: str) -> None:
        """Pull the network cable of a node; its processes, and the files it shares with the others, stay."""
        if self.network is None:
            raise ClusterError("the nodes have no network of their own to cut (this takes root and namespaces)")
        self.network.cut(node)

    def stop(self) -> None:
        """Stop every daemon, and remove the network."""
        for name in (*self.nodes, CONTROLLER, MUNGE):
            self.daemon(name).stop(signal.SIGKILL)
            if name in self.nodes and not self.isolation:
                self._kill_processes_of(name)
        if self.network:
            self.network.remove(self.nodes)

    def down(self) -> None:
        """Stop everything and remove what `up` made."""
        self.stop()
        for name in OWN:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def daemon(self, name: str) -> Daemon:
        """By name: a node, slurmctld or munged. ClusterError for any other."""
        if name not in (*self.nodes, CONTROLLER, MUNGE):
            raise ClusterError(f"{name}: the daemons are {', '.join((*self.nodes, CONTROLLER, MUNGE))}")
        return Daemon(self.folder / "run" / f"{name}.pid")

    def _command(self, name: str) -> list[str]:
        program = {path: self.programs.find(path) or path for path in (*NEEDED, "slurmstepd")}
        configuration = str(self.folder / "slurm.conf")
        if name == MUNGE:
            run = self.folder / "run"
            files = [f"--key-file={self.folder}/munge.key", f"--seed-file={run}/munge.seed"]
            files += [f"--socket={run}/munge.sock", f"--pid-file={run}/munge.daemon"]
            return [program[MUNGE], "--foreground", "--force", "--num-threads=4", *files]
        if name == CONTROLLER:
            slurmctld = [program[CONTROLLER], "-D", "-f", configuration]
            if not self.isolation:
                return slurmctld
            # It listens where this machine's name leads, which must not be an address that others can reach.
            own = ["unshare", "--mount", *(AS_USER if self.isolation != UNSHARE else [])]
            return [*own, "bash", "-c", f"mount --bind {self.folder}/hosts /etc/hosts && exec {shlex.join(slurmctld)}"]
        slurmd = [program["slurmd"], "-D", "-N", name, "-f", configuration, "-d", program["slurmstepd"]]
        if not self.isolation:
            return slurmd
        # The shell is the node's first process: it buries the orphans, and when slurmd ends the node ends.
        first = f"mount --bind {self.folder}/hosts /etc/hosts && hostname {name} && {{ {shlex.join(slurmd)} & wait; }}"
        outside = ["nsenter", f"--net=/run/netns/{self.network.namespace(name)}"] if self.network else []
        return [*outside, *self.isolation, "bash", "-c", first]

    def _addresses(self) -> list[Address]:
        """Each node at its own address; where they share a network, at a loopback address and a port of its own."""
        found = []
        for index, name in enumerate(self.nodes):
            if self.network:
                found.append(Address(name, Network.address(self.network.number, index), 6818))
            else:
                address = f"127.0.1.{index + 1}"
                found.append(Address(name, address, free_port(address)))
        return found

    def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + UP_TIMEOUT_S
        command = [self.programs.find("sinfo") or "sinfo", "--noheader", "--Node", "--format=%N %T", "--partition=main"]
        environment = {**os.environ, **self.environment()}
        while True:
            answer = subprocess.run(command, env=environment, capture_output=True, text=True)
            states = dict(line.split() for line in answer.stdout.splitlines())
            if answer.returncode == 0 and set(states.values()) == {"idle"}:
                return
            dead = [name for name in (MUNGE, CONTROLLER, *self.nodes) if self.daemon(name).pid is None]
            if dead or time.monotonic() > deadline:
                what = f"{', '.join(dead)} ended" if dead else f"the nodes are {states or answer.stderr.strip()}"
                raise ClusterError(f"the cluster did not come up: {what}; see {self.folder}/log")
            time.sleep(POLL_S)

    def _kill_processes_of(self, node: str) -> None:
        """Without namespaces: whatever has slurmd's environment of this node."""
        marks = {f"SLURM_CONF={self.folder}/slurm.conf".encode(), f"SLURMD_NODENAME={node}".encode()}
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                if marks <= set(entry.read_bytes().split(b"\0")):
                    os.kill(int(entry.parent.name), signal.SIGKILL)
            except OSError:
                continue  # ended meanwhile, or somebody else's

    def _save(self) -> None:
        facts = asdict(self)
        del facts["folder"]
        (self.folder / "cluster.json").write_text(json.dumps(facts, default=str) + "\n")


def _claim(folder: Path) -> None:
    """Make the folder, or clear what a cluster left that died with the machine. ClusterError if it is in use."""
    if len(str(folder)) > LONGEST_PATH:
        raise ClusterError(f"{folder}: at most {LONGEST_PATH} characters, as there will be sockets in it; use --dir")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise ClusterError(f"{folder} belongs to somebody else; use --dir")
    if (folder / "cluster.json").exists():
        left = Cluster.at(folder)
        if left.daemon(CONTROLLER).pid is not None:
            raise ClusterError(f"there is a cluster in {folder} already; take it down with: minicluster down")
        left.down()
        folder.mkdir(mode=0o700, exist_ok=True)
    elif any(folder.iterdir()):
        raise ClusterError(f"{folder} is not empty; use --dir")


def _works(isolation: Sequence[str]) -> bool:
    """Whether a node can have these namespaces, its own host name and hosts file."""
    attempt = "hostname try && mount --bind /etc/hosts /etc/hosts"
    try:
        return subprocess.run([*isolation, "bash", "-c", attempt], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
