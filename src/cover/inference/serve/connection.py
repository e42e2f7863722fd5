"""What may a connection do before it is a request? Only so much, for only so long: uvicorn itself waits for a request's head for ever."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from cover.inference.serve.limits import Limits


def patient(limits: Limits) -> Any:
    """uvicorn's HTTP/1.1 protocol, with `limits.connections` and `limits.header_s`."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class PatientProtocol(H11Protocol):
        """A connection beyond the number is closed, and so is one on which no request gets whole in time."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """Called by the loop."""
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
            else:
                self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            """Called by the loop."""
            self._stop()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            """Called by the loop."""
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop()
            else:
                self._watch()

        def _watch(self) -> None:
            if self._timer is None and not self.transport.is_closing():
                self._timer = self.loop.call_later(limits.header_s, self._expire)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _expire(self) -> None:
            self._timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP is answered in the shape of all errors, unless an answer is on its way."""
            body = json.dumps({"error": msg}).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
            try:
                for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
                self.transport.close()
            except h11.LocalProtocolError:
                self.transport.abort()

    return PatientProtocol
