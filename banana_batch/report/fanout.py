"""One event, told to several."""

from collections.abc import Iterable

from banana_batch.ports import Events


class Fanout:
    """Passes each event on, in order; implements `ports.Events`."""

    def __init__(self, sinks: Iterable[Events]) -> None:
        self._sinks = list(sinks)

    def emit(self, event: str, /, **facts: object) -> None:
        """Tell everybody."""
        for sink in self._sinks:
            try:
                sink.emit(event, **facts)
            except Exception as error:  # noqa: BLE001  # a bug in a report must not cancel other people's paid calls
                self._drop(sink, error)

    def _drop(self, sink: Events, error: Exception) -> None:
        self._sinks = [other for other in self._sinks if other is not sink]
        name = type(sink).__name__
        self.emit("note", message=f"{name} failed ({type(error).__name__}) and is left out from here on; a bug")
