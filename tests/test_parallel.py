"Threads and processes: who gets how many, what is raised, and that no process is left behind"
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from raptor_nb.core.parallel import DeviceError, WorkerError, WorkerPool, choose_device
from raptor_nb.core.parallel import parallel_for, run_concurrently, run_work_queue
from raptor_nb.core.parallel import single_threaded, thread_count


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name, sentence", [
    pytest.param("gpu", "device 'gpu': there is no such device; choose 'auto', 'cpu'",
                 id="device-unknown"),
    pytest.param("meta", "device 'meta': there is no such device", id="device-unusable"),
    pytest.param("", "device '': there is no such device", id="device-empty"),
    pytest.param("cuda:99", r"device 'cuda:99': this machine has \d+ CUDA devices",
                 id="device-absent"),
])
def test_bad_device(name, sentence):
    with pytest.raises(DeviceError, match=sentence): choose_device(name)


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def pieces(*args, **kwargs):
    "What `parallel_for` calls its function with"
    calls = []
    parallel_for(lambda *piece: calls.append(piece), *args, **kwargs)
    return sorted(calls)


def test_where_torch_keeps_to_one_thread_the_others_are_for_parallel_parts(two_threads):
    with single_threaded():
        assert torch.get_num_threads() == 1
        assert pieces(20) == [(i, min(i + 3, 20)) for i in range(0, 20, 3)]
    assert torch.get_num_threads() == 2
    with single_threaded(1), single_threaded(): assert pieces(20) == [(0, 20)]
    assert torch.get_num_threads() == 2
    assert pieces(20, workers=1) == [(0, 20)]


def test_a_piece_that_fails_is_said():
    with pytest.raises(ZeroDivisionError):
        parallel_for(lambda first, last: 1 // first, 8, workers=2)


def test_cores_are_divided_among_trainings_at_once():
    def share(x, check_cancelled): return x, thread_count()
    assert run_concurrently(share, [1, 2, 3], 2) == [(1, 1), (2, 1), (3, 2)]
    assert run_concurrently(share, [1, 2], 5) == [(1, 2), (2, 2)]
    assert run_concurrently(share, [], 2) == []
    assert run_concurrently(share, [1], 1) == [(1, torch.get_num_threads())]


def test_a_failure_stops_the_trainings_beside_it():
    ended = []
    def train(x, check_cancelled):
        if x == 0: raise ValueError("the first")
        for _ in range(2000):
            time.sleep(.01)
            check_cancelled()
        ended.append(x)
    with pytest.raises(ValueError, match="the first"): run_concurrently(train, [0, 1, 2], 2)
    assert not ended


@pytest.mark.parametrize("workers", [1, 3])
def test_items_of_a_queue_take_turns_until_each_is_done(workers):
    left = {"a": 3, "b": 1, "c": 7}
    def move_on(name):
        left[name] -= 1
        return left[name] > 0
    run_work_queue(move_on, list(left), workers)
    assert set(left.values()) == {0}


def test_a_failure_stops_the_queue():
    turns = []
    def move_on(name):
        if name == "bad": raise ValueError("the bad one")
        turns.append(name)
        return len(turns) < 10**9
    with pytest.raises(ValueError, match="the bad one"):
        run_work_queue(move_on, ["a", "bad", "c"], 2)


class Counter:
    "What the processes of these tests keep"
    def __init__(self, start): self.n = start
    def add(self, n):
        if n < 0: raise ValueError(f"{n} is less than nothing")
        self.n += n
        return self.n
    def state(self): return os.getpid(), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


@pytest.fixture
def pool():
    made = WorkerPool(f"{__name__}:Counter", [(10,), (20,)])
    yield made
    made.close()


def test_each_process_keeps_an_object_and_has_one_thread(pool):
    assert pool.call("add", 1) == [11, 21] and pool.call("add", 2) == [13, 23]
    (a, *threads), (b, *_) = pool.call("state")
    assert len({a, b, os.getpid()}) == 3 and threads == [1, "1"]
    pool.close()
    assert not psutil.pid_exists(a) and not psutil.pid_exists(b)


def test_what_a_worker_raises_is_raised_here_and_it_lives_on(pool):
    with pytest.raises(ValueError, match="-1 is less than nothing"): pool.call("add", -1)
    assert pool.call("add", 1) == [11, 21]


def test_a_worker_that_dies_is_said(pool):
    os.kill(pool.call("state")[1][0], signal.SIGKILL)
    with pytest.raises(WorkerError, match="a worker process has ended, as happens when memory"):
        pool.call("add", 1)


PROGRAM = """
import sys, time
from raptor_nb.core.parallel import WorkerPool
pool = WorkerPool('os:getpid', [()])
print(pool.executors[0].submit(__import__('os').getpid).result(), flush=True)
try: pool.executors[0].submit(time.sleep, float(sys.argv[1])).result()
finally: pool.close()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
@pytest.mark.parametrize("kind, busy", [(signal.SIGKILL, 600), (signal.SIGTERM, 600),
                                        (signal.SIGINT, 3)])
def test_no_process_is_left_behind(kind, busy):
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM, str(busy)], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(kind)
    parent.wait(30)
    assert worker.wait(30) in (None, 0, 1)
