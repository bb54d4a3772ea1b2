# Ordinary work of a Python script, a line for each thing that went well.
import asyncio
import concurrent.futures
import ctypes
import fcntl
import mmap
import multiprocessing
import os
import resource
import select
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import shared_memory
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
os.chdir(tempfile.mkdtemp())
TESTS = []


def work(function):
    TESTS.append(function)
    return function


def call(name, *args):
    answer = getattr(libc, name)(*args)
    if answer == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return answer


@work
def threads():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda n: n * n, range(100))) == 328350


@work
def subprocesses():
    done = subprocess.run(["sh", "-c", "cat; echo $$ >&2; exit 3"], input=b"in", capture_output=True)
    assert (done.returncode, done.stdout) == (3, b"in")
    assert subprocess.run(["true"], start_new_session=True, close_fds=True, cwd="/", umask=0o77).returncode == 0
    child = os.posix_spawn("/bin/true", ["true"], os.environ)
    assert os.waitpid(child, 0)[1] == 0


def square(number):
    return number * number


@work
def processes():
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
    queue = multiprocessing.Queue()
    child = multiprocessing.Process(target=queue.put, args=("from the child",))
    child.start()
    assert queue.get(timeout=10) == "from the child"
    child.join()
    block = shared_memory.SharedMemory(create=True, size=4096)
    block.buf[0] = 7
    block.close()
    block.unlink()
    with multiprocessing.Lock():
        pass


@work
def signals():
    got = []
    signal.signal(signal.SIGUSR1, lambda *_: got.append("usr1"))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGALRM, lambda *_: got.append("alarm"))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    signal.pause()
    assert got == ["usr1", "alarm"]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    mask = (ctypes.c_ulong * 16)(1 << (signal.SIGUSR2 - 1))
    file = call("signalfd", -1, mask, 0)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert len(os.read(file, 128)) == 128
    pidfd = os.pidfd_open(os.getpid())
    signal.pidfd_send_signal(pidfd, signal.SIGUSR1)
    assert got[-1] == "usr1"


@work
def waiting():
    poll = select.epoll()
    event = os.eventfd(0)
    poll.register(event, select.EPOLLIN)
    os.eventfd_write(event, 1)
    assert poll.poll(5)
    timer = call("timerfd_create", time.CLOCK_MONOTONIC, 0)
    call("timerfd_settime", timer, 0, (ctypes.c_long * 4)(0, 0, 0, 1_000_000), None)
    assert select.select([timer], [], [], 5)[0]
    assert select.poll().poll(0) == []
    time.sleep(0.001)
    assert time.clock_getres(time.CLOCK_MONOTONIC) > 0


@work
def tcp_and_udp():
    for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, "stream")):
        with socket.socket(family) as listener, socket.socket(family) as client:
            listener.bind(address)
            listener.listen()
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            with server, open("sent", "w+b") as file:
                file.write(b"x" * 5000)
                file.flush()
                assert os.sendfile(client.fileno(), file.fileno(), 0, 5000) == 5000
                assert len(server.recv(5000, socket.MSG_WAITALL)) == 5000
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as other:
        one.bind(("127.0.0.1", 0))
        other.sendto(b"datagram", one.getsockname())
        assert one.recvfrom(100)[0] == b"datagram"
    one, other = socket.socketpair()
    socket.send_fds(one, [b"fd"], [0])
    assert len(socket.recv_fds(other, 10, 1)[1]) == 1
    socket.socket(socket.AF_INET6).close()
    assert socket.getaddrinfo("localhost", 80)
    assert [name for _, name in socket.if_nameindex()] == ["lo"]


@work
def a_server():
    class Echo(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.readline())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever).start()
        with socket.create_connection(server.server_address) as client:
            client.sendall(b"line\n")
            assert client.makefile().readline() == "line\n"
        server.shutdown()


@work
def event_loop():
    async def main():
        async def answer(reader, writer):
            writer.write((await reader.readline()).upper())
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        assert await reader.readline() == b"HELLO\n"
        writer.close()
        server.close()
        local = await asyncio.start_unix_server(answer, "loop.sock")
        reader, writer = await asyncio.open_unix_connection("loop.sock")
        writer.write(b"unix\n")
        assert await reader.readline() == b"UNIX\n"
        local.close()
        child = await asyncio.create_subprocess_exec("echo", "child", stdout=asyncio.subprocess.PIPE)
        assert (await child.communicate())[0] == b"child\n"
        assert await asyncio.to_thread(square, 3) == 9

    asyncio.run(main())


@work
def files():
    path = Path("file")
    path.write_bytes(b"content" * 1000)
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)
        os.posix_fallocate(file.fileno(), 0, 8192)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.fsync(file.fileno())
        with mmap.mmap(file.fileno(), 0) as mapped:
            mapped[0:1] = b"C"
            mapped.flush()
        with open("copy", "wb") as copy:
            assert os.copy_file_range(file.fileno(), copy.fileno(), 1000) == 1000
        reading, writing = os.pipe()
        assert os.splice(file.fileno(), writing, 1000, offset_src=0) == 1000
        os.ftruncate(file.fileno(), 10)
        assert os.preadv(file.fileno(), [bytearray(5)], 0) == 5
    os.link("file", "hard")
    os.symlink("file", "soft")
    os.mkfifo("fifo")
    os.chmod("file", 0o640)
    os.chown("file", os.getuid(), os.getgid())
    os.utime("file", (1, 1))
    os.rename("hard", "renamed")
    os.setxattr("file", "user.note", b"x")
    assert os.statvfs(".").f_bsize
    assert sorted(entry.name for entry in os.scandir("."))[0] == "copy"
    memory = os.memfd_create("memory", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    watch = call("inotify_init1", 0)
    call("inotify_add_watch", watch, b".", 0x100)
    Path("new").touch()
    assert b"new" in os.read(watch, 4096)
    with sqlite3.connect("base.db") as base:
        base.execute("PRAGMA journal_mode=WAL")
        base.execute("CREATE TABLE t (x)")


@work
def its_own_limits():
    assert len(os.getrandom(16)) == 16
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.nice(1)
    resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 4096))
    resource.getrusage(resource.RUSAGE_SELF)
    os.setresuid(*os.getresuid())
    os.umask(0o22)
    assert call("prctl", 15, b"renamed", 0, 0, 0) == 0
    assert call("personality", 0xFFFFFFFF) == 0


@work
def ipc():
    shared = call("shmget", 0, 4096, 0o1600)
    call("shmctl", shared, 0, None)
    call("semget", 0, 1, 0o1600)
    call("msgget", 0, 0o1600)
    call("mq_open", b"/queue", 0o102, 0o600, None)
    call("mq_unlink", b"/queue")


if __name__ == "__main__":
    for test in TESTS:
        try:
            test()
            print(test.__name__)
        except (OSError, RuntimeError, AssertionError) as error:
            print(f"{test.__name__}: {error!r}")
        sys.stdout.flush()
