"""What a command costs: CPU-seconds, wall and memory of its whole process tree.

This process must stay small: a child begins as its copy, and Linux counts that into the child's peak.
"""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_EVERY_S = 0.05


class CommandFailed(Exception):
    """A measured command ended with an error; the message is the last line that it wrote."""


@dataclass(frozen=True)
class Cost:
    """One run of a command."""

    cpu_s: float  # user and system, of all processes that it started
    wall_s: float
    peak_mb: float  # the largest sum over its processes of their proportional memory, sampled (10^6 bytes)
    largest_rss_mb: float  # the peak of its largest process, by the kernel's own account


def measure(command: Sequence[str], log: Path) -> Cost:
    """Run `command` to its end, its output into `log`. Raises CommandFailed.

    CPU is the kernel's account of ended and waited-for processes, or the sampled sum where that is more: a
    process that nobody waits for (of a fork server) is in the second only.
    """
    started = time.monotonic()
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    seen: dict[int, float] = {}
    peak = 0.0
    while True:
        ended, status, usage = os.wait4(child.pid, os.WNOHANG)
        if ended:
            break
        members = session_members(child.pid)
        seen |= members
        peak = max(peak, sum(map(proportional_mb, members)))
        time.sleep(SAMPLE_EVERY_S)
    wall_s = time.monotonic() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise CommandFailed(f"exit {child.returncode}: {last_line(log)}")
    cpu_s = max(usage.ru_utime + usage.ru_stime, sum(seen.values()))
    return Cost(cpu_s, wall_s, peak, usage.ru_maxrss * 1024 / 1e6)


def session_members(session: int) -> dict[int, float]:
    """CPU-seconds so far of each process of a session, its orphans included."""
    ticks = os.sysconf("SC_CLK_TCK")
    members = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat_fields(int(name))) and int(fields[3]) == session:
            members[int(name)] = (int(fields[11]) + int(fields[12])) / ticks
    return members


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold spaces: the third field comes first."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def proportional_mb(pid: int) -> float:
    """The process's memory, a page that n processes share counted as 1/n; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
