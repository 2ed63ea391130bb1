"""One event, told to those who hear it."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from banana_batch.ports import Events, Listener


class Fanout:
    """Passes each event on, in order; implements `ports.Events`."""

    def __init__(self, sinks: Iterable[Events]) -> None:
        self._sinks = list(sinks)
        self._hearing: dict[str, list[tuple[Events, Listener]]] = {}

    def emit(self, event: str, /, **facts: object) -> None:
        """Tell everybody who hears this event."""
        hearing = self._hearing.get(event)
        if hearing is None:
            hearing = self._hearing[event] = list(self._listeners(event))
        for sink, tell in hearing:
            try:
                tell(facts)
            except Exception as error:  # noqa: BLE001  # a bug in a report must not cancel other people's paid calls
                self._drop(sink, error)

    def _listeners(self, event: str) -> Iterator[tuple[Events, Listener]]:
        for sink in self._sinks:
            pick: Callable[[str], Listener | None] = getattr(sink, "listener", partial(_whole, sink))
            tell = pick(event)
            if tell is not None:
                yield sink, tell

    def _drop(self, sink: Events, error: Exception) -> None:
        self._sinks = [other for other in self._sinks if other is not sink]
        self._hearing = {}
        name = type(sink).__name__
        self.emit("note", message=f"{name} failed ({type(error).__name__}) and is left out from here on; a bug")


def _whole(sink: Events, event: str) -> Listener:
    return lambda facts: sink.emit(event, **facts)
