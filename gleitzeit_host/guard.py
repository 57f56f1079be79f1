"""The guard: parent of every provider, so that none outlives the host, whatever becomes of it.

Run as `python -I -S guard.py FD` by gleitzeit_host.processes, its only other end; FD is a stream socket. It imports
nothing of the package and little of the standard library: it is on the way of the host's first call.

For each provider the guard forks a *keeper*, which starts the provider, waits for it, and kills whatever the provider
leaves behind: guard and keepers are subreapers, so daemonised grandchildren come back to them. When the host's end of
the socket closes, the guard kills everything; when the guard dies, its keepers are signalled by the kernel and do. One
that somebody has stopped is woken for that: SIGCONT comes with every signal, and is what the kernel sends at a death.

From the host, a line of JSON each: `{"spawn": id, "argv": […], "env": {…}}` with three descriptors (SCM_RIGHTS) that
become 0, 1 and 2 (each character of argv and env stands for a byte, as in Latin-1); `{"terminate": id}`: SIGTERM to the
provider's group; `{"kill": id}`: SIGKILL to all below.
To the host: `{"obeyed": N}` after its N-th order; `{"id", "pid"}` once started, or `{"id", "error"}`; `{"id", "exit"}`
once nothing of it is left (negative: the signal that ended it).
"""

import _socket  # socket alone costs 6 ms, for enumerations that this program has no use for
import json
import os
import select
import signal
import sys

LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
KILL_ALL = signal.SIGUSR1  # guard → keeper
TO_KEEPERS = (signal.SIGTERM, KILL_ALL, signal.SIGCONT)
PROC = os.path.exists("/proc/self/stat")

if LINUX:
    import ctypes

    _prctl = ctypes.CDLL(None).prctl


def main() -> None:
    """Serve the host until its end of the socket closes, then kill whatever is left."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the host's launcher may have blocked any
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    if LINUX:
        _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        _prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # nobody's business, not even the same user's; keepers inherit it
        _prctl(PR_SET_PDEATHSIG, int(signal.SIGCONT), 0, 0, 0)
    host = int(sys.argv[1])
    os.set_inheritable(host, False)
    os.closerange(3, host)  # what the host was launched with, and has no use for, must not reach a provider
    os.closerange(host + 1, 4096)
    Guard(_socket.socket(fileno=host)).serve()


class Guard:
    """The process that listens to the host."""

    def __init__(self, host: "_socket.socket") -> None:
        self.host = host
        self.keepers: dict[int, int] = {}  # provider id → keeper's pid
        self.descriptors: list[int] = []  # received, not spawned with yet
        self.rest = b""
        self.obeyed = 0

    def serve(self) -> None:
        """Take orders and reap keepers until the host is gone."""
        self.wake_up, self.child_ended = os.pipe()
        os.set_blocking(self.wake_up, False)
        os.set_blocking(self.child_ended, False)
        signal.set_wakeup_fd(self.child_ended, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self.host.fileno(), select.POLLIN)
        poll.register(self.wake_up, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self.wake_up:
                    os.read(self.wake_up, 4096)
                    self.reap()
                elif not self.receive():
                    self.end()
                    return

    def end(self) -> None:
        """Kill everything, and leave when it is gone."""
        for id in list(self.keepers):
            self.signal(id, KILL_ALL)
        if PROC:
            kill_everything_below()
        else:
            while self.keepers:
                self.reap(wait=True)

    def receive(self) -> bool:
        """Read and carry out what the host has sent; return False at its end."""
        try:
            data, ancillary, _, _ = self.host.recvmsg(65536, _socket.CMSG_SPACE(4 * 3 * 64))
        except OSError:
            return False
        for level, kind, content in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                view = memoryview(content[: len(content) - len(content) % 4]).cast("i")
                for fd in view.tolist():
                    os.set_inheritable(fd, False)  # as they arrive, every child would get them
                    self.descriptors.append(fd)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.obey(json.loads(line))
            self.obeyed += 1
            tell(self.host, {"obeyed": self.obeyed})
        return bool(data)

    def obey(self, order: dict) -> None:  # type: ignore[type-arg]
        """Carry out one order."""
        if "spawn" in order:
            streams, self.descriptors = self.descriptors[:3], self.descriptors[3:]
            self.spawn(order, streams)
            for fd in streams:
                os.close(fd)
        elif "terminate" in order:
            self.signal(order["terminate"], signal.SIGTERM)
        else:
            self.signal(order["kill"], KILL_ALL)

    def spawn(self, order: dict, streams: list[int]) -> None:  # type: ignore[type-arg]
        """Fork a keeper. What it is signalled from the first moment on waits until it has handlers."""
        guard = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, TO_KEEPERS)
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, no memory: the providers that run are none the worse
            tell(self.host, {"id": order["spawn"], "error": f"no process can be forked: {error.strerror}"})
        else:
            if pid == 0:
                self.become_keeper(guard, order, streams)
            self.keepers[order["spawn"]] = pid
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TO_KEEPERS)

    def signal(self, id: int, number: int) -> None:
        """Signal a keeper; one that has been reaped is not in the table, so no stranger can be hit."""
        pid = self.keepers.get(id)
        if pid is not None:
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)

    def become_keeper(self, guard: int, order: dict, streams: list[int]) -> None:  # type: ignore[type-arg]
        """Turn this fork of the guard into a keeper. Does not return."""
        try:
            signal.set_wakeup_fd(-1)
            for fd in (self.wake_up, self.child_ended, *self.descriptors):
                os.close(fd)
            argv = [word.encode("latin-1") for word in order["argv"]]
            env = {name.encode("latin-1"): value.encode("latin-1") for name, value in order["env"].items()}
            keep(self.host, guard, order["spawn"], argv, env, streams)
        finally:
            os._exit(1)

    def reap(self, wait: bool = False) -> None:
        """Reap what has ended. A keeper that was killed leaves its provider to the guard, which kills it."""
        ids = {pid: id for id, pid in self.keepers.items()}
        while True:
            try:
                pid, status = os.waitpid(-1, 0 if wait else os.WNOHANG)
            except ChildProcessError:
                self.keepers.clear()
                return
            if pid == 0:
                return
            id = ids.pop(pid, None)
            if id is not None:
                del self.keepers[id]
                if status != 0:
                    if PROC:
                        kill_everything_below(spare=frozenset(self.keepers.values()))
                    tell(self.host, {"id": id, "exit": -int(signal.SIGKILL)})


def keep(  # noqa: C901 - its handlers share the pid
    host: "_socket.socket", guard: int, id: int, argv: list[bytes], env: dict[bytes, bytes], streams: list[int]
) -> None:
    """Start a provider, wait for its end, and leave nothing of it. Does not return. TO_KEEPERS are blocked before."""
    if LINUX:
        _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        _prctl(PR_SET_PDEATHSIG, int(signal.SIGCONT), 0, 0, 0)
        if os.getppid() != guard:  # it died before the line above
            os._exit(1)
    provider = 0

    def terminate(*_: object) -> None:
        if provider:
            signal_group(provider, signal.SIGTERM)

    def kill_all(*_: object) -> None:
        if provider:  # its end ends wait_for below, and the rest is killed and reaped there
            signal_group(provider, signal.SIGKILL)
            kill(descendants(frozenset()))

    def continued(*_: object) -> None:
        if os.getppid() != guard:
            kill_all()

    signal.signal(signal.SIGTERM, terminate)
    if LINUX:
        signal.signal(signal.SIGCONT, continued)
    signal.signal(KILL_ALL, kill_all)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(lift(streams))]
    # all, as this interpreter ignores some, and the host's launcher may have had more of them ignored
    defaults = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    try:
        provider = os.posix_spawn(
            argv[0], argv, env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=defaults
        )
    except OSError as error:
        tell(host, {"id": id, "error": f"{os.fsdecode(argv[0])}: {error.strerror}"})
        os._exit(0)
    for _, fd, _ in actions:
        os.close(fd)
    tell(host, {"id": id, "pid": provider})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TO_KEEPERS)  # not before its pid is known, or it could not be killed
    status = wait_for(provider)
    signal_group(provider, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_BLOCK, TO_KEEPERS)  # its pid is free from here on
    if PROC:
        kill_everything_below()
    tell(host, {"id": id, "exit": status})
    os._exit(0)


def lift(streams: list[int]) -> list[int]:
    """Move descriptors above 2, where duplicating one onto 0, 1 or 2 cannot overwrite another."""
    lifted = []
    for fd in streams:
        if fd > 2:
            lifted.append(fd)
        else:
            high = os.dup(fd)
            while high <= 2:
                high = os.dup(fd)
            lifted.append(high)
    return lifted


def wait_for(provider: int) -> int:
    """Wait until the provider has exited, leaving its pid taken; return its status. Orphans are reaped meanwhile."""
    if not LINUX:  # macOS has no waitid before Python 3.13, and no orphans come here
        return os.waitstatus_to_exitcode(os.waitpid(provider, 0)[1])
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # not while the provider is unreaped
            return -int(signal.SIGKILL)
        if info is None:
            continue
        if info.si_pid == provider:
            killed = info.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
            return -info.si_status if killed else info.si_status
        try:
            os.waitpid(info.si_pid, os.WNOHANG)
        except ChildProcessError:
            pass


def signal_group(leader: int, number: int) -> None:
    """Signal a provider's group; it may be gone, or hold a program of another user."""
    try:
        os.killpg(leader, number)
    except OSError:
        pass


def kill(pids: list[int]) -> "set[int]":
    """Stop all, so that none forks on meanwhile, then kill all; return those that run as another user (sudo)."""
    foreign = set()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            try:
                os.kill(pid, number)
            except PermissionError:
                foreign.add(pid)
            except OSError:
                pass
    return foreign


def kill_everything_below(spare: "frozenset[int]" = frozenset()) -> None:
    """Kill and reap every descendant but the children to be spared, and what is below those.

    Orphans come back to this process, a subreaper, so the work is done when no other child is left. Only what has been
    sent SIGKILL is waited for: what was forked meanwhile is found, and killed, in the next round.
    """
    left_alone = set(spare)
    while True:
        found = descendants(frozenset(left_alone))
        left_alone |= kill(found)
        for pid in found:
            if pid not in left_alone:
                try:
                    os.waitpid(pid, 0)
                except ChildProcessError:  # not a child yet: its parent is still on its way out
                    pass
        if not found and (left_alone or not has_children()):
            return


def has_children() -> bool:
    """Ask the kernel, which misses none: a process that forks and exits all the time slips through a look at /proc."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def descendants(spare: "frozenset[int]") -> list[int]:
    """Return the pids below this process, from one look at /proc."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents():
        children.setdefault(parent, []).append(pid)
    found, look_at = [], [os.getpid()]
    while look_at:
        for pid in children.get(look_at.pop(), ()):
            if pid not in spare:
                found.append(pid)
                look_at.append(pid)
    return found


def parents() -> "list[tuple[int, int]]":
    """Return (pid, parent's pid) of every process; empty where there is no /proc."""
    pairs: list[tuple[int, int]] = []
    try:
        entries = os.listdir("/proc")
    except OSError:
        return pairs
    for entry in entries:
        if entry.isdigit():
            try:
                fd = os.open(f"/proc/{entry}/stat", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                stat = os.read(fd, 4096)
            except OSError:
                continue
            finally:
                os.close(fd)
            pairs.append((int(entry), int(stat[stat.rindex(b")") + 2 :].split()[1])))
    return pairs


def tell(host: "_socket.socket", message: dict) -> None:  # type: ignore[type-arg]
    """Send one line to the host. It is far smaller than a socket's buffer, so writers do not mix."""
    try:
        host.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        pass


if __name__ == "__main__":
    main()
