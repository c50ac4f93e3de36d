"""The only way from outside to the page: asks each connection for its token and where it comes from, then passes bytes.

viser knows neither logins nor the origin of a page; it listens on a port of this machine that nobody else is told.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import threading
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from nerf.errors import UserError

COOKIE = "nerf_token"
LONGEST_HEAD = 16384  # bytes of the first request's header
_PATIENCE = 15.0  # seconds until it must be there
_LOCAL = ("localhost", "127.0.0.1", "::1", "[::1]")


def is_local(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    return host in _LOCAL


def new_token() -> str:
    """What nobody guesses."""
    return secrets.token_urlsafe(24)


class Door:
    """Listens at host and port and lets connections through to the port behind it. token: None lets everybody in who
    reaches it, but not the pages of other sites that are open in the same browser.

    port: the first one to try; `self.port` is the one that was free.
    """

    def __init__(self, host: str, port: int, behind: int, token: str | None = None) -> None:
        self.host, self.behind, self.token = host, behind, token
        self.port = port
        self.n_refused = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.AbstractServer | None = None
        ready = threading.Event()
        failed: list[OSError] = []

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            try:
                self._server = self._loop.run_until_complete(self._listen(port))
            except OSError as error:
                failed.append(error)
                return
            finally:
                ready.set()
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, name="nerf-viewer-door", daemon=True)
        self._thread.start()
        ready.wait()
        if failed:
            raise UserError(
                f"the viewer cannot listen at {host}, port {port} ({failed[0].strerror or failed[0]}): choose another "
                "with --host and --port"
            )

    @property
    def address(self) -> str:
        """What is typed into a browser."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    def close(self) -> None:
        """Listen no more; open connections end."""

        async def stop() -> None:
            if self._server is not None:
                self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            self._loop.stop()

        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(stop(), self._loop)
            self._thread.join(timeout=5)

    async def _listen(self, first: int) -> asyncio.AbstractServer:
        last: OSError | None = None
        for port in range(first, min(first + 20, 65536)) if first else [0]:
            try:
                server = await asyncio.start_server(self._enter, self.host or None, port, limit=LONGEST_HEAD)
            except OSError as error:
                last = error
                continue
            self.port = server.sockets[0].getsockname()[1]
            return server
        raise last or OSError(f"port {first} does not exist")

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE)
            answer = self.answer(head)
            if answer is not None:
                self.n_refused += not answer.startswith(b"HTTP/1.1 303")
                writer.write(answer)
                await writer.drain()
                return
            there, out = await asyncio.open_connection("127.0.0.1", self.behind, limit=1 << 18)
            out.write(head)
            await _both(_pass(reader, out), _pass(there, writer))
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it has gone, or sends no request
        except asyncio.CancelledError:
            pass  # the door is closed
        finally:
            with suppress(OSError, RuntimeError):
                writer.close()

    def answer(self, head: bytes) -> bytes | None:
        """What a request (its first line and header) gets instead of the page; None: it may pass."""
        try:
            first, *lines = head.decode("latin-1").split("\r\n")
            _, target, version = first.split(" ")
            if not version.startswith("HTTP/"):
                raise ValueError
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
        except ValueError:
            return _said(400, "This is no request of a browser.")
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin and origin != "null" and urlsplit(origin).netloc != host:
            return _said(403, "Pages of other sites may not look at this one.")
        if self.token is None:
            name = urlsplit(f"//{host}").hostname or ""
            if is_local(self.host) and not is_local(name):  # a name of somebody else that leads here
                return _said(403, "Ask for this page at 127.0.0.1 or localhost.")
            return None
        if self._knows(parse_qs(urlsplit(target).query).get("token", [""])[0]):
            cookie = f"{COOKIE}={self.token}; Path=/; HttpOnly; SameSite=Strict"
            return (f"HTTP/1.1 303 See Other\r\nLocation: /\r\nSet-Cookie: {cookie}\r\n" + _END).encode("latin-1")
        try:
            there = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            there = None
        if there is not None and self._knows(there.value):
            return None
        return _said(403, "This page needs the token that nerf printed: open the whole address, ?token=... included.")

    def _knows(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), (self.token or "").encode())


_END = "Content-Length: 0\r\nConnection: close\r\n\r\n"


def _said(status: int, text: str) -> bytes:
    body = f"{text}\n".encode()
    words = {400: "Bad Request", 403: "Forbidden"}[status]
    head = f"HTTP/1.1 {status} {words}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()  # waits where the other side reads slower: nothing piles up here
    finally:
        with suppress(OSError, RuntimeError):
            sink.close()


async def _both(a: object, b: object) -> None:
    tasks = [asyncio.ensure_future(x) for x in (a, b)]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
