"""What processes of a run tell one another, here within one process: real sockets between several `Peers`."""

import contextlib
import queue
import socket
import threading
import time

import pytest

from cp2_jax.runs import peers


@contextlib.contextmanager
def three(patience=60.0, grace=60.0):
    """Give processes 0, 1 and 2, what each was ended with, and the ends of the connections that 1 and 2 hold."""
    pairs = {number: socket.socketpair() for number in (1, 2)}
    ends = [queue.Queue() for _ in range(3)]
    links = [{n: pair[0] for n, pair in pairs.items()}, {0: pairs[1][1]}, {0: pairs[2][1]}]
    made = [peers.Peers(n, links[n], patience, 75, ends[n].put, grace) for n in range(3)]
    try:
        yield made, ends, {n: pair[1] for n, pair in pairs.items()}
    finally:
        for one in made:
            one.close()


def agree(made, problems):
    """Let each process say what it has to say, and return what each is answered."""
    answers = {}

    def ask(number):
        answers[number] = made[number].agree(problems[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in problems]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [answers.get(n, "waits") for n in problems]


def test_a_step_is_taken_where_all_can_and_by_none_where_one_cannot():
    with three() as (made, ends, _):
        for _ in range(50):
            assert agree(made, {0: None, 1: None, 2: None}) == [None] * 3
        assert agree(made, {2: "a.png: broken", 0: None, 1: None}) == [(2, "a.png: broken")] * 3
        assert agree(made, {2: "a.png: broken", 0: "b.png: gone", 1: None}) == [(0, "b.png: gone")] * 3
        assert all(end.empty() for end in ends) and made[0].late() == []


def test_the_first_process_knows_who_keeps_the_others_waiting():
    with three() as (made, _, _):
        assert agree(made, {0: None, 1: None, 2: None}) == [None] * 3
        threads = [threading.Thread(target=made[n].agree, args=(None,)) for n in (0, 1)]
        for thread in threads:
            thread.start()
        while made[0].late() != [2]:  # until both have been heard
            time.sleep(0.01)
        made[2].agree(None)
        for thread in threads:
            thread.join(20)
        assert made[0].late() == []


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_ends_those_that_wait_but_not_those_that_end_by_themselves(failing):
    with three(grace=0.3) as (made, ends, _):
        made[2].leave("the same", 1)
        made[failing].leave("/data: the disk is full", 1)
        other = made[1 - failing]
        stop = other.stopped(20)
        assert (stop.process, stop.lost) in [(2, False), (failing, False)]  # whichever was heard first
        assert ends[1 - failing].get(timeout=20) == stop and stop.status == 1
        assert isinstance(other.agree(None), peers.Stop)  # and does not wait for a step
        assert ends[failing].empty() and ends[2].empty()


@pytest.mark.parametrize("gone, hears", [(0, (1, 2)), (1, (0, 2))])
def test_a_process_that_is_gone_is_known_to_all_at_once(gone, hears):
    with three() as (made, ends, held):
        made[gone]._closed = True  # it does nothing any more
        for link in made[0]._links.values() if gone == 0 else [held[gone]]:
            link.shutdown(socket.SHUT_RDWR)  # as the system does with those of one that was killed
        for number in hears:
            stop = ends[number].get(timeout=20)
            assert stop == peers.Stop(gone, "was lost (its connection was closed)", 75, lost=True)


def test_a_process_that_is_silent_is_taken_for_lost():
    with three(patience=0.4) as (made, ends, held):
        assert made[1].stopped(0.8) is None  # those that live say so
    ours, theirs = socket.socketpair()
    end = queue.Queue()
    alone = peers.Peers(0, {1: ours}, 0.2, 75, end.put)
    assert end.get(timeout=20) == peers.Stop(1, "was lost (gave no sign of life for 0.2 s)", 75, lost=True)
    alone.close()
    theirs.close()


def test_a_process_that_left_in_good_order_is_not_lost():
    with three() as (made, ends, _):
        for one in (made[0], made[2], made[1]):
            one.leave()
            one.close()
        assert made[1].stopped(0.1) is None and all(end.empty() for end in ends)


def test_one_that_waits_at_the_end_for_the_first_process_hears_of_its_loss():
    with three() as (made, ends, _):
        made[1].leave()
        made[0]._closed = True
        for link in made[0]._links.values():
            link.shutdown(socket.SHUT_RDWR)
        assert ends[1].get(timeout=20).lost


class Service:
    """The coordination service's store of texts, as far as it is used."""

    def __init__(self):
        self.store = queue.Queue()

    def key_value_set(self, key, value):
        self.store.put((key, value))

    def blocking_key_value_get(self, key, milliseconds):
        with contextlib.suppress(queue.Empty):
            found, value = self.store.get(timeout=milliseconds / 1000)
            assert found == key
            self.store.put((found, value))
            return value
        raise RuntimeError("DEADLINE_EXCEEDED")


def connected(monkeypatch, hosts):
    monkeypatch.setattr(peers, "_JOIN", 0.6)
    service, found = Service(), {}

    def come(number):
        found[number] = peers.connect(service, hosts[number], number, len(hosts))

    threads = [threading.Thread(target=come, args=(number,)) for number in range(len(hosts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_processes_connect_to_the_first(monkeypatch):
    found = connected(monkeypatch, ["localhost"] * 3)
    assert {n: sorted(links) for n, links in found.items()} == {0: [1, 2], 1: [0], 2: [0]}
    for n in (1, 2):
        found[n][0].sendall(b"hello")
        assert found[0][n].recv(10) == b"hello"
    for links in found.values():
        for link in links.values():
            link.close()


def test_where_one_cannot_connect_none_relies_on_it(monkeypatch):
    assert connected(monkeypatch, ["localhost", "localhost", "host.invalid"]) == {0: None, 1: None, 2: None}
