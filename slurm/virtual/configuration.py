"""The configuration files of a virtual cluster, for SLURM 22.05 and later."""

import os
import pwd
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.virtual.programs import Programs

PARTITIONS = """\
PartitionName=main Nodes=ALL Default=YES DefaultTime=60 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=preempt Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF State=UP
"""

# Quick where a real cluster is patient: scheduling at once, dead nodes noticed in half a minute.
SLURM_CONF = """\
ClusterName=mini
SlurmctldHost={host}({controller})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.daemon
SlurmdPidFile={folder}/run/slurmd.%n.daemon
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
PlugStackConfig={folder}/plugstack.conf
MailProg=/bin/true
RebootProgram=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobs.txt
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_resolution=1,bf_window=1440,nohold_on_prolog_fail
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
FirstJobId={first_job}
CompleteWait=0
KillWait=5
OverTimeLimit=0
MinJobAge=3600
MessageTimeout=10
BatchStartTimeout=10
SlurmctldTimeout=10
SlurmdTimeout=10
TCPTimeout=2
UnkillableStepTimeout=10
ReturnToService=2
"""

NODE = (
    "NodeName={name} NodeHostname={name} NodeAddr={address} Port={port} CPUs=64 Boards=1 SocketsPerBoard=2 "
    "CoresPerSocket=32 ThreadsPerCore=1 RealMemory=512000 TmpDisk=100000{gpus} State=UNKNOWN\n"
)

CGROUP_CONF = "ConstrainCores=no\nConstrainRAMSpace=no\nConstrainDevices=no\n"


@dataclass(frozen=True)
class Address:
    """A node as the configuration names it."""

    name: str
    address: str
    port: int


def write_configuration(
    folder: Path,
    nodes: Sequence[Address],
    *,
    controller: str,
    is_bound: bool,
    num_gpus: int,
    programs: Programs,
) -> None:
    """Every file that the daemons read, and the directories that they write in.

    `is_bound`: slurmctld listens at the address `controller` only; it must find this machine's name there.
    """
    for name in ("run", "state", "spool", "log", "dev"):
        (folder / name).mkdir()
    for number in range(num_gpus):  # a device file each, or SLURM would not hand out numbers
        (folder / "dev" / f"nvidia{number}").symlink_to("/dev/null")
    host = socket.gethostname()
    text = SLURM_CONF.format(
        host=host,
        controller=controller,
        port=free_port(controller),
        user=pwd.getpwuid(os.geteuid()).pw_name,
        folder=folder,
        first_job=random.randrange(1000, 10000),  # clusters side by side: other ids, other ports derived from them
    )
    if is_bound:
        text += "CommunicationParameters=NoCtldInAddrAny\n"
    if programs.plugins is not None:
        text += f"PluginDir={programs.plugins}\n"
    gpus = f" Gres=gpu:h100:{num_gpus}" if num_gpus else ""
    text += "".join(NODE.format(**vars(node), gpus=gpus) for node in nodes) + PARTITIONS
    names = ",".join(node.name for node in nodes)
    gres = f"NodeName={names} Name=gpu Type=h100 File={folder}/dev/nvidia[0-{num_gpus - 1}]\n" if num_gpus else ""
    hosts = [f"{node.address} {node.name}" for node in nodes] + [f"{controller} {host}"]
    hosts += [line for line in Path("/etc/hosts").read_text().splitlines() if host not in line.split()[1:]]
    for name, content in {
        "slurm.conf": text,
        "gres.conf": gres,
        "cgroup.conf": CGROUP_CONF,
        "plugstack.conf": "",
        "hosts": "\n".join(hosts) + "\n",
    }.items():
        (folder / name).write_text(content)
    key = os.open(folder / "munge.key", os.O_WRONLY | os.O_CREAT, 0o400)
    os.write(key, os.urandom(128))
    os.close(key)


def free_port(address: str) -> int:
    """A port of `address` that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        return int(listener.getsockname()[1])
