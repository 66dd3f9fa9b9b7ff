"A SLURM on this machine, for tests: munged, slurmctld, slurmd"
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = "munged", "slurmctld", "slurmd", "sbatch", "squeue"
CONFIG = """\
ClusterName=here
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldPort={port}
SlurmdPort={next_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SwitchType=switch/none
MpiDefault=none
KillWait=2
NodeName={host} CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=here Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    "Why there can be no SLURM here, or ''"
    if os.name != "posix" or os.geteuid(): return "SLURM is started by root"
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    return f"there is no {absent[0]}: make tools" if absent else ""


def write(folder, host, port):
    for name in ("state", "spool", "munge"): (folder / name).mkdir(parents=True)
    text = CONFIG.format(host=host, folder=folder, port=port, next_port=port + 1)
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupAutomount=yes\nIgnoreSystemd=yes\n")
    key = folder / "munge/key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for path in (folder / "munge", key): shutil.chown(path, "munge", "munge")


@contextmanager
def slurm(folder, port):
    "One node of two cores; yields the environment that its commands need"
    folder, host = Path(folder), os.uname().nodename.split(".")[0]
    write(folder, host, port)
    folder.chmod(0o755)
    env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = ["runuser", "-u", "munge", "--", "munged", "--foreground", "--force"]
    munge += [f"--{option}={folder}/munge/{name}" for option, name in
              (("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"),
               ("seed-file", "seed"), ("key-file", "key"))]
    commands = [munge, ["slurmctld", "-D"], ["slurmd", "-D"]]
    started = []
    try:
        for command in commands:
            quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL)
            started.append(subprocess.Popen(command, env=env, **quiet))
            time.sleep(.5)
        end = time.monotonic() + 60
        while "idle" not in sinfo(env):
            if time.monotonic() > end: raise RuntimeError(f"SLURM does not start: {sinfo(env)}")
            time.sleep(.2)
        yield env
    finally:
        subprocess.run(["scancel", "--user=root"], env=env, capture_output=True)
        for process in reversed(started): process.terminate()
        for process in started:
            try: process.wait(20)
            except subprocess.TimeoutExpired: process.kill()


def sinfo(env):
    "The state of the node"
    asked = ["sinfo", "-h", "-o", "%T"]
    return subprocess.run(asked, env=env, capture_output=True, text=True).stdout
