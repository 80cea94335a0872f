"""How a rank that leaves a training publishes the cause to the others.

A rank that fails alone leaves its peers in a collective, which ends with an error that says no reason. So before it
leaves it publishes its ending in the rendezvous store, which rank 0 holds, and waits some seconds until the others have
read it. Each of them looks there twice a second. When their collectives fail, they end as that rank did: with its exit
code and its message, on every host.

A rank that is asked to stop before it trains publishes that as well, as others may be waiting for it to join.
"""

import math
import os
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import NoReturn

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from dmd.exit_codes import LOST, STOPPED
from launch.network.rendezvous import open_store
from launch.supervision.channels import Channels, Phase
from launch.supervision.ending import Ending, parse_ending
from launch.supervision.supervise import end, stopped_message

POLL_SECONDS = 0.5
PUBLISH_SECONDS = 10.0
"""How long a rank that fails waits for its peers to read why."""
ABSENT_SECONDS = 30.0
"""After this time rank 0 prints how many others have not joined."""
CAUSE_WAIT_SECONDS = 5.0
"""How long a rank that has lost its peers looks for the cause, which was published before, if at all."""
_COUNT_SECONDS = 0.05
"""Time between two looks at how many ranks know the cause."""
_CAUSE = "dmd/cause"
"""Key of the store: the ending of the rank that left first."""
_ACKNOWLEDGED = "dmd/acknowledged"
"""Key of the store: how many ranks know the cause."""
_JOINED = "dmd/joined"
"""Key of the store: how many ranks have connected."""


class Peers:
    """The other ranks of a training. Before `connect`, and for a single rank, there are none."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._store: TCPStore | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._acknowledged = False
        self._leaving = False
        self._stay_seconds = PUBLISH_SECONDS
        self._expected_ranks = 0
        """How many ranks must have read the cause before this one leaves; 0: all that have joined."""

    def connect(self, timeout: timedelta, *, to_leave: bool = False) -> None:
        """Connect to the rendezvous store; from here on this rank learns why another one leaves.

        Args:
            timeout: how long to wait for rank 0.
            to_leave: this rank cannot train. It joins only to publish why, and waits until all others have joined and
                read it, as long as for rank 0.

        Raises:
            ValueError, torch.distributed.DistNetworkError: as `open_store`.
        """
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if ranks == 1:
            return
        if to_leave:
            self._stay_seconds = timeout.total_seconds()
            self._expected_ranks = ranks
        self._store = open_store(timeout)
        self._store.add(_JOINED, 1)
        self._channels.phase = Phase.JOINING
        threading.Thread(target=self._watch, args=(self._store,), name="peers", daemon=True).start()

    def begin(self) -> None:
        """All have joined, and the training begins: from here on this rank itself looks for requests to stop."""
        with self._lock:
            if not self._leaving:
                self._channels.phase = Phase.TRAINING
                return
        threading.Event().wait()  # the other thread ends this process

    def close(self) -> None:
        """All ranks are done: none will publish a cause any more."""
        self._done.set()

    def final_ending(self, ending: Ending) -> Ending:
        """How this rank ends: with its own ending, which is published; or, if it has lost its peers, with that of the
        rank that left."""
        if self._store is None:
            return ending
        self._done.set()
        lost = ending.code == LOST
        if lost and (cause := self._channels.notes().cause) is not None:
            return cause
        work = self._check_for_cause if lost else partial(self._publish, ending)
        helper = threading.Thread(target=work, args=(self._store,), daemon=True)
        try:
            helper.start()  # in a thread, as a network that is down would block this rank
            helper.join(CAUSE_WAIT_SECONDS if lost else self._stay_seconds)
        except RuntimeError:  # no new thread, as memory is short
            work(self._store)
        return (self._channels.notes().cause or ending) if lost else ending

    def _publish(self, ending: Ending, store: TCPStore) -> None:
        """Publish an ending, unless another rank was first. The first rank, and rank 0, wait until all have read it."""
        with suppress(RuntimeError):  # rank 0 has left, and the store with it
            text = ending.json()
            first = store.compare_set(_CAUSE, "", text).decode() == text
            if not first:
                self._acknowledge(store)
            if first or os.environ["RANK"] == "0":
                self._wait_for_all(store)

    def _watch(self, store: TCPStore) -> None:
        report_at = time.monotonic() + ABSENT_SECONDS
        while not self._done.wait(POLL_SECONDS) and not self._check_for_cause(store):
            if os.environ["RANK"] == "0" and time.monotonic() > report_at:
                report_at = math.inf
                self._report_absent(store)
            with self._lock:
                self._leaving = self._channels.stop_asked and self._channels.phase < Phase.TRAINING
            if self._leaving:
                own = Ending(code=STOPPED, message=stopped_message(), origin=int(os.environ["RANK"]))
                leave(self._channels, self.final_ending(own))

    def _report_absent(self, store: TCPStore) -> None:
        """Print how many ranks have not joined, if any: a host may have been forgotten."""
        ranks = int(os.environ["WORLD_SIZE"])
        absent = ranks - store.add(_JOINED, 0)
        if absent:
            print(f"{absent} of {ranks} ranks are not here yet; waiting for them", file=sys.stderr, flush=True)

    def _check_for_cause(self, store: TCPStore) -> bool:
        """Read why another rank leaves, if one does. A rank that has not begun to train leaves with it: it would wait
        for that rank, and has nothing to save. Returns whether there is nothing more to read."""
        try:
            if not store.check([_CAUSE]):
                return False
            cause = parse_ending(store.get(_CAUSE).decode())
            self._channels.note_cause(cause)
            self._acknowledge(store)
            with self._lock:
                self._leaving = self._channels.phase < Phase.TRAINING and not self._done.is_set()
            if self._leaving and os.environ["RANK"] == "0":
                self._wait_for_all(store)
        except RuntimeError:
            return True  # rank 0 has left
        if self._leaving:
            leave(self._channels, cause)
        return True

    def _wait_for_all(self, store: TCPStore) -> None:
        """Wait some seconds until all that have joined know the cause: the store ends with rank 0."""
        until = time.monotonic() + self._stay_seconds
        while (
            store.add(_ACKNOWLEDGED, 0) < max(store.add(_JOINED, 0), self._expected_ranks) - 1
            and time.monotonic() < until
        ):
            time.sleep(_COUNT_SECONDS)

    def _acknowledge(self, store: TCPStore) -> None:
        """Count this rank among those that know the cause, once. Rank 0 may leave then."""
        with self._lock:
            is_first = not self._acknowledged
            self._acknowledged = True
        if is_first:
            store.add(_ACKNOWLEDGED, 1)


def leave(channels: Channels, ending: Ending) -> NoReturn:
    """End this process with an ending that its supervisor reads."""
    channels.note_ending(ending)
    end(ending.code)
