"""One event, told to those who hear it."""

from collections.abc import Iterable

from banana_batch.ports import Events


class Fanout:
    """Passes each event on, in order; implements `ports.Events`."""

    def __init__(self, sinks: Iterable[Events]) -> None:
        self._sinks = list(sinks)
        self._hearing: dict[str, list[Events]] = {}

    def emit(self, event: str, /, **facts: object) -> None:
        """Tell everybody who hears this event."""
        hearing = self._hearing.get(event)
        if hearing is None:
            hearing = self._hearing[event] = [sink for sink in self._sinks if _hears(sink, event)]
        for sink in hearing:
            try:
                sink.emit(event, **facts)
            except Exception as error:  # noqa: BLE001  # a bug in a report must not cancel other people's paid calls
                self._drop(sink, error)

    def _drop(self, sink: Events, error: Exception) -> None:
        self._sinks = [other for other in self._sinks if other is not sink]
        self._hearing = {}
        name = type(sink).__name__
        self.emit("note", message=f"{name} failed ({type(error).__name__}) and is left out from here on; a bug")


def _hears(sink: Events, event: str) -> bool:
    hears = getattr(sink, "hears", None)
    return hears is None or event in hears
