"""What the ranks of a training tell each other when one of them leaves: why.

A rank that fails alone leaves its peers in a collective, which ends with an error that knows no reason. So before it
goes it writes its ending into the rendezvous store, which rank 0 holds, and waits a few seconds for the others to have
read it. Each of them looks there twice a second. Then their collectives fail, and they end as that rank did: with its
exit code and its message, on every host.

A rank that is asked to stop before it trains says so in the same way, since others may be waiting for it to join.
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

LOOK_SECONDS = 0.5
TELL_SECONDS = 5.0
"""How long a rank that fails stays for its peers to read why."""
ABSENT_SECONDS = 30.0
"""After this time rank 0 says how many others have not come."""
HEAR_SECONDS = 2.0
"""How long a rank that has lost its peers looks for a reason. It was there before that rank went, if at all."""
_CAUSE, _HEARD, _HERE = "dmd/cause", "dmd/heard", "dmd/here"


class Peers:
    """The other ranks, as one rank knows them; `connect` makes it so. Alone it knows none."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._store: TCPStore | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._heard = self._leaving = False
        self._stay_seconds, self._awaited = TELL_SECONDS, 0

    def connect(self, timeout: timedelta, *, to_leave: bool = False) -> None:
        """Meet the others in the rendezvous store; from here on this rank hears why another one leaves.

        Args:
            timeout: how long to wait for rank 0.
            to_leave: this rank cannot train. It comes to say so, and then stays as long for all of the others.

        Raises:
            ValueError, torch.distributed.DistNetworkError: as `open_store`.
        """
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if ranks == 1:
            return
        if to_leave:
            self._stay_seconds, self._awaited = timeout.total_seconds(), ranks
        self._store = open_store(timeout)
        self._store.add(_HERE, 1)
        self._channels.phase = Phase.JOINING
        threading.Thread(target=self._watch, args=(self._store,), name="peers", daemon=True).start()

    def begin(self) -> None:
        """All have joined, and the training begins: this rank obeys stop requests itself from here on."""
        with self._lock:
            if not self._leaving:
                self._channels.phase = Phase.TRAINING
                return
        threading.Event().wait()  # the other thread is ending this process

    def close(self) -> None:
        """All ranks are done: none will leave with a reason any more."""
        self._done.set()

    def settle(self, ending: Ending) -> Ending:
        """How this rank ends: as it says, and the others are told; or, where it has lost them, as the one that left."""
        if self._store is None:
            return ending
        self._done.set()
        lost = ending.code == LOST
        if lost and (cause := self._channels.noted()[1]) is not None:
            return cause
        work = self._look if lost else partial(self._tell, ending)
        helper = threading.Thread(target=work, args=(self._store,), daemon=True)
        try:
            helper.start()  # a network that is down would hold this rank
            helper.join(HEAR_SECONDS if lost else self._stay_seconds)
        except RuntimeError:  # where memory is short there is no thread to be had
            work(self._store)
        return (self._channels.noted()[1] or ending) if lost else ending

    def _tell(self, ending: Ending, store: TCPStore) -> None:
        """Leave an ending where nobody else has; who did, and who holds the store, waits until all have read it."""
        with suppress(RuntimeError):  # rank 0 has gone: there is nobody to tell
            text = ending.json()
            first = store.compare_set(_CAUSE, "", text).decode() == text
            if not first:
                self._hear(store)
            if first or os.environ["RANK"] == "0":
                self._wait_for_all(store)

    def _watch(self, store: TCPStore) -> None:
        report_at = time.monotonic() + ABSENT_SECONDS
        while not self._done.wait(LOOK_SECONDS) and not self._look(store):
            if os.environ["RANK"] == "0" and time.monotonic() > report_at:
                report_at = math.inf
                self._report_absent(store)
            with self._lock:
                self._leaving = self._channels.stop_asked and self._channels.phase < Phase.TRAINING
            if self._leaving:
                own = Ending(code=STOPPED, message=stopped_message(), origin=int(os.environ["RANK"]))
                leave(self._channels, self.settle(own))

    def _report_absent(self, store: TCPStore) -> None:
        """Say that others have not come, where they have not: a host may have been forgotten."""
        ranks = int(os.environ["WORLD_SIZE"])
        absent = ranks - store.add(_HERE, 0)
        if absent:
            print(f"{absent} of {ranks} ranks are not here yet; waiting for them", file=sys.stderr, flush=True)

    def _look(self, store: TCPStore) -> bool:
        """Hear why another rank leaves, if one has said so. It leaves with it where it has not begun to train: it would
        wait for that rank, and has nothing to save. Returns whether there is nothing more to hear."""
        try:
            if not store.check([_CAUSE]):
                return False
            cause = parse_ending(store.get(_CAUSE).decode())
            self._channels.note_cause(cause)
            self._hear(store)
            with self._lock:
                self._leaving = self._channels.phase < Phase.TRAINING and not self._done.is_set()
            if self._leaving and os.environ["RANK"] == "0":
                self._wait_for_all(store)
        except RuntimeError:
            return True  # rank 0 has gone
        if self._leaving:
            leave(self._channels, cause)
        return True

    def _wait_for_all(self, store: TCPStore) -> None:
        """Wait until all that are here know the cause, for some seconds: the store goes with rank 0."""
        until = time.monotonic() + self._stay_seconds
        while store.add(_HEARD, 0) < max(store.add(_HERE, 0), self._awaited) - 1 and time.monotonic() < until:
            time.sleep(0.05)

    def _hear(self, store: TCPStore) -> None:
        """Say that this rank knows the cause: once, and when it does, since rank 0 may go then."""
        with self._lock:
            new, self._heard = not self._heard, True
        if new:
            store.add(_HEARD, 1)


def leave(channels: Channels, ending: Ending) -> NoReturn:
    """End this process with an ending that its supervisor reads."""
    channels.note_ending(ending)
    end(ending.code)
