"""The lock is reentrant and goes to whoever asked first."""

from __future__ import annotations

import threading

from sterna.engine.fair_lock import FairLock


def test_it_is_handed_over_in_the_order_of_asking():
    lock, order, threads = FairLock(), [], []

    def take(index):
        with lock:
            order.append(index)

    with lock, lock:
        for index in range(5):
            threads.append(threading.Thread(target=take, args=(index,)))
            threads[-1].start()
            while len(lock._waiting) <= index:
                pass
        assert order == []
    # the releasing thread asks again at once and still comes last
    with lock:
        order.append("main")
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4, "main"]


def test_only_one_thread_is_inside():
    lock, inside, worst = FairLock(), 0, 0

    def work():
        nonlocal inside, worst
        for _ in range(200):
            with lock:
                inside += 1
                worst = max(worst, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == 1 and inside == 0
