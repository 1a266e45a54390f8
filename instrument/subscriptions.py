"""Who follows a run while it goes on: callables for steps and events, called between steps and never inside one.

What happens in a step is kept until the step is over and its parameters, its optimizer's state and the run's own counts are whole; then every
subscriber is told, on the thread that stepped. So a subscriber that raises does so between two steps: its exception leaves `optimizer.step()`
(or `backward()` for an update by hand) with nothing half done, as if the line after it had raised, and the other subscribers have been told by
then. Exporters and the report's own writer are held apart: monitoring that fails is logged once and dropped, and training goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from instrument.events import Event, EventLog
from instrument.history import StepRecord

OnEvent = Callable[[Event], object]
OnStep = Callable[[StepRecord], object]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Subscriber:
    on_event: OnEvent | None
    on_step: OnStep | None
    on_close: Callable[[], object] | None
    apart: bool


class Subscriptions:
    """The subscribers of a run, and the events that they have not been told of. Costs nothing while there are none."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.subscribers: list[_Subscriber] = []
        self._telling = threading.local()

    def add(
        self,
        on_event: OnEvent | None = None,
        on_step: OnStep | None = None,
        on_close: Callable[[], object] | None = None,
        *,
        apart: bool = False,
    ) -> Callable[[], None]:
        """Add a subscriber; returns what removes it again.

        Args:
            on_event: called with every event that occurred since the last step; its `count` is the run's total so far.
            on_step: called with every step.
            on_close: called when the block closes.
            apart: an exception of it is logged and ends its subscription, instead of being the caller's.
        """
        subscriber = _Subscriber(on_event, on_step, on_close, apart)
        self.subscribers.append(subscriber)
        if self._log.changed is None:
            self._log.changed = {event.key: event for event in self._log}

        def remove() -> None:
            if subscriber in self.subscribers:
                self.subscribers.remove(subscriber)

        return remove

    def tell(self, record: StepRecord | None) -> None:
        """A step is over (None: the block closes): tell everybody what happened.

        Raises:
            Exception: the first that a subscriber raised, once all have been told.
        """
        if getattr(self._telling, "now", False):
            return  # a subscriber that trains something of its own
        changed = self._log.take_changed()
        failed: list[BaseException] = []
        self._telling.now = True
        try:
            for subscriber in list(self.subscribers):
                self._tell_one(subscriber, changed, record, failed)
        finally:
            self._telling.now = False
        if failed:
            raise failed[0]

    def _tell_one(self, subscriber: _Subscriber, changed: list[Event], record: StepRecord | None, failed: list[BaseException]) -> None:
        try:
            if subscriber.on_event is not None:
                for event in changed:
                    subscriber.on_event(event)
            if subscriber.on_step is not None and record is not None:
                subscriber.on_step(record)
        except Exception as error:
            self._failed(subscriber, error, failed)

    def _failed(self, subscriber: _Subscriber, error: Exception, failed: list[BaseException]) -> None:
        if not subscriber.apart:
            failed.append(error)
            return
        _LOG.warning("what followed the run failed and is told nothing more; training goes on", exc_info=error)
        if subscriber in self.subscribers:
            self.subscribers.remove(subscriber)

    def close(self) -> None:
        """The block closes: tell what is left, then that it is over.

        Raises:
            Exception: the first that a subscriber raised, once all have been told.
        """
        failed: list[BaseException] = []
        try:
            self.tell(None)
        except Exception as error:
            failed.append(error)
        for subscriber in list(self.subscribers):
            try:
                if subscriber.on_close is not None:
                    subscriber.on_close()
            except Exception as error:
                self._failed(subscriber, error, failed)
        self.subscribers.clear()
        if failed:
            raise failed[0]
