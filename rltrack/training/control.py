"""Stop, pause and resume: from any thread, by signal, also before training began.

Requests are looked at at boundaries only, the one moment at which the state is consistent. A signal asks for a stop and
starts a deadline; past it the iteration in flight is abandoned, since the last checkpoint is good.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

DEADLINE_SECONDS = 20.0
_POLL_SECONDS = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_OUTPUTS = (1, 2)


class IterationAbandoned(BaseException):
    """The iteration in flight was cut off; the agent is in no consistent state.

    A ``BaseException``, so that no ``except Exception`` inside an algorithm or environment swallows it.
    """


class _Abandonable:
    """A context that costs next to nothing, since each iteration is one."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def __enter__(self) -> None:
        self._control.may_abandon = True
        if self._control.past_deadline:
            self._control.may_abandon = False
            raise IterationAbandoned("the deadline passed")

    def __exit__(self, *_: object) -> None:
        self._control.may_abandon = False


class Control:
    """What was asked of a training from outside.

    Args:
        on_signal: Called with the name of each signal, from inside the handler.
    """

    def __init__(self, on_signal: Callable[[str], None] | None = None) -> None:
        self.on_signal = on_signal
        self.deadline_seconds = DEADLINE_SECONDS
        self._stop = threading.Event()
        self._resumed = threading.Event()
        self._resumed.set()
        self.reason: str | None = None
        self.may_abandon = False
        self.past_deadline = False
        self._abandonable = _Abandonable(self)
        self._timer: threading.Timer | None = None

    def stop(self, reason: str = "stop() was called") -> None:
        """Ask to stop at the next boundary; the first reason is kept."""
        if self.reason is None:
            self.reason = reason
        self._stop.set()

    def pause(self) -> None:
        """Ask to pause at the next boundary."""
        self._resumed.clear()

    def resume(self) -> None:
        """Continue after a pause."""
        self._resumed.set()

    @property
    def should_stop(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop.is_set()

    @property
    def should_pause(self) -> bool:
        """Whether a pause was asked for, and no stop."""
        return not self._resumed.is_set() and not self._stop.is_set()

    def wait_while_paused(self, look: Callable[[], None] = lambda: None) -> None:
        """Block until `resume` or `stop`; signals are still heard, and `look` is called now and then."""
        while self.should_pause:
            look()
            self._resumed.wait(_POLL_SECONDS)

    def abandonable(self) -> _Abandonable:
        """Inside, the deadline or a second Ctrl-C raises `IterationAbandoned`."""
        return self._abandonable

    @contextmanager
    def signals(self, *, chain: bool = True) -> Iterator[None]:
        """Hear SIGINT, SIGTERM and SIGHUP, in the main thread only; put back what was there.

        SIGHUP (the terminal or the ssh connection is gone) is left alone where it is ignored, as under ``nohup``. Where the
        terminal is gone, what would be printed there is dropped: writing to it is an error, and would end the training.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = heard_signals()
        previous: dict[int, Any] = {number: signal.getsignal(number) for number in wanted}
        terminals = [descriptor for descriptor in _OUTPUTS if os.isatty(descriptor)]
        received: set[int] = set()

        def handle(number: int, frame: FrameType | None) -> None:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                _leave(terminals)
            if self.past_deadline:
                if self.may_abandon:
                    raise IterationAbandoned(f"{self.deadline_seconds:g} s after the signal")
                return
            again = number in received and number == signal.SIGINT
            received.add(number)
            if self.on_signal is not None:
                self.on_signal(name)
            self.stop(f"{name} received")
            if again and self.may_abandon:
                raise IterationAbandoned("second SIGINT")
            if self._timer is None:
                self._timer = threading.Timer(self.deadline_seconds, self._deadline, [number])
                self._timer.daemon = True
                self._timer.start()
            chained = previous[number]
            if chain and callable(chained) and chained is not signal.default_int_handler:
                chained(number, frame)

        for heard in wanted:
            signal.signal(heard, handle)
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _deadline(self, number: int) -> None:
        """In the timer's thread: interrupt the main thread, whose handler then raises."""
        self.past_deadline = True
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, number)


def heard_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a training to stop: SIGHUP too, unless this process was started to ignore it."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return (*_SIGNALS, signal.SIGHUP) if hangs_up else _SIGNALS


def _leave(terminals: list[int]) -> None:
    """Have the outputs to terminals that are gone lead nowhere."""
    gone = [descriptor for descriptor in terminals if not os.isatty(descriptor)]
    if gone:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in gone:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
