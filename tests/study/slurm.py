"""A Slurm of one node, this machine: slurmctld and slurmd in a folder of the test; no munge, cgroups or accounts."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={other}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=20
MinJobAge=300
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4 State=UP
"""


def missing() -> list[str]:
    """What of Slurm is not installed here."""
    return [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextlib.contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """Within: a Slurm that takes jobs; yields the environment that finds it. Its daemons end with the block."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    port, other = free_ports(2)
    host, user = socket.gethostname().partition(".")[0], os.environ.get("USER") or "root"
    facts = {"host": host, "port": port, "other": other, "user": user, "cpus": os.cpu_count(), "folder": folder}
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(**facts))
    environment = {"SLURM_CONF": str(config), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    daemons = []
    try:
        for command in (["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c", "-N", host]):
            with open(folder / f"{command[0]}.out", "w") as out:
                daemons.append(subprocess.Popen(command, env=os.environ | environment, stdout=out, stderr=out))
        wait_for(lambda: "idle" in ask(environment, "sinfo", "-h", "-o", "%T"), 30, lambda: said(folder))
        yield environment
    finally:
        with contextlib.suppress(subprocess.SubprocessError, AssertionError):
            ask(environment, "scancel", "--user", user)
            wait_for(lambda: not ask(environment, "squeue", "-h"), 30)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()


def ask(environment: dict[str, str], *command: str) -> str:
    """What a command of Slurm answers; empty where it fails."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=30)
    return done.stdout if done.returncode == 0 else ""


def said(folder: Path) -> str:
    """The last lines of the daemons."""
    return "\n".join(line for f in folder.glob("slurm*.log") for line in f.read_text().splitlines()[-15:])


def wait_for(true, seconds: float, else_say=lambda: "") -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {else_say()}"
        time.sleep(0.2)
