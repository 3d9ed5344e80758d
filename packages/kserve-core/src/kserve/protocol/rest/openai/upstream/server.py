"""A server that a proxy passes requests on to: its addresses, its connections and its health."""

import asyncio
import contextlib
from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx2
import orjson

from kserve.logging import logger
from kserve.protocol.rest.openai.upstream.errors import refusal, transport_error

# A connection within a cluster takes milliseconds, one that is lost a second to be tried again.
_CONNECT_TIMEOUT_S: Final = 5.0

# A probe gives up after 1 s, unless it is told otherwise, and the server's own check after 5 s.
_PROBE_TIMEOUT_S: Final = 4.0

# Less than the 5 s after which uvicorn, and vLLM with it, closes an idle connection: a request that
# goes out on one that is being closed is lost, and may not be sent again.
_KEEP_ALIVE_S: Final = 4.0

# What the requests in flight leave behind; how many those are is limited by the server.
_MAX_IDLE_CONNECTIONS: Final = 256

# Where it is refused, and nothing has been sent.
_CONNECT_ATTEMPTS: Final = 2

# How long `close` waits for a connection to say goodbye.
_CLOSE_TIMEOUT_S: Final = 1.0

# vLLM has these beside `/v1`, and not below it.
_AT_ROOT: Final = frozenset({"classify", "pooling", "tokenize", "detokenize"})

_JSON: Final = {"content-type": "application/json", "accept-encoding": "identity"}


class Addresses(NamedTuple):
    """Where the routes of a server are.

    Attributes:
        origin: The scheme, the host and the port, for the log: a URL may hold a password.
        root: What stands before `/tokenize` and the like.
        v1: What stands before `/chat/completions` and the like.
    """

    origin: str
    root: str
    v1: str

    @classmethod
    def of(cls, url: str) -> "Addresses":
        """Give those of a server.

        Args:
            url: `http://HOST:PORT`, or the `base_url` of a client, which ends in `/v1`.

        Raises:
            ValueError: It is no such URL.
        """
        try:
            parts = urlsplit(url)
            port = f":{parts.port}" if parts.port else ""
        except ValueError as exc:
            raise ValueError(f"{_EXPECTED}, got {url!r}: {exc}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{_EXPECTED}, got {url!r}")
        if parts.query or parts.fragment:
            raise ValueError(f"{_EXPECTED} without a query, got {url!r}")
        base = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/").removesuffix("/v1")
        # The prefix of KServe's servers: what is not OpenAI's is beside it.
        root = base.removesuffix("/openai")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(f"{parts.scheme}://{host}{port}", root, f"{base}/v1")

    def of_api(self, api: str) -> str:
        """Give where an API is, such as `chat/completions`."""
        return f"{self.root if api in _AT_ROOT else self.v1}/{api}"


_EXPECTED: Final = "expected http://HOST:PORT or https://HOST"


class Upstream:
    """The connections to a server; for the event loop, and for one at a time.

    Args:
        url: As for `Addresses.of`.
        http_client: Makes the requests, and is closed by whoever made it; None for one of its own.
        api_key: What the server wants to see as a bearer token, in place of the client's.
        idle_timeout_s: Seconds for which it may send nothing, above 0; None is no limit.

    Raises:
        ValueError: The URL is none.
    """

    def __init__(
        self,
        url: str,
        http_client: httpx2.AsyncClient | None = None,
        *,
        api_key: str | None = None,
        idle_timeout_s: float | None = None,
    ) -> None:
        self.addresses = Addresses.of(url)
        self._given_client = http_client
        self._api_key = api_key
        self._idle_timeout_s = idle_timeout_s
        self._client: httpx2.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # What the log has said last.
        self._was_healthy = True

    @property
    def has_own_key(self) -> bool:
        """Whether the proxy shows a key of its own."""
        return self._api_key is not None

    def prepare(self) -> None:
        """Make what takes some time, from any thread: the certificates are read."""
        if self._given_client is None and self._client is None:
            self._client = self._make_client()

    async def post(self, api: str, body: bytes, headers: Mapping[str, str]) -> httpx2.Response:
        """Ask for something, and give the response as soon as its head is there.

        It is sent once: again only where there was no connection to send it on.

        Args:
            api: Such as `chat/completions`.
            body: JSON.
            headers: What goes with it, lower-case.

        Returns:
            A response of success, whose body has not been read; whoever gets it closes it.

        Raises:
            OpenAIError: The server cannot be reached, or refuses.
        """
        client, url = self._connected(), self.addresses.of_api(api)
        request = client.build_request("POST", url, content=body, headers=self._headers(headers))
        try:
            response = await self._send(client, request)
            if response.is_success:
                return response
            refused = await _read_and_close(response)
        except httpx2.HTTPError as exc:
            self.note(exc)
            raise transport_error(exc) from exc
        route = f"POST {request.url.path}"
        if response.status_code >= 500:
            logger.warning(
                "Upstream %s answers %d to %s", self.addresses.origin, response.status_code, route
            )
        raise refusal(
            response.status_code, response.headers, refused, route, has_own_key=self.has_own_key
        )

    async def read(self, response: httpx2.Response) -> bytes:
        """Give the body of a response, and close it.

        Raises:
            OpenAIError: The connection failed.
        """
        try:
            return await _read_and_close(response)
        except httpx2.HTTPError as exc:
            self.note(exc)
            raise transport_error(exc) from exc

    async def get(self, url: str) -> httpx2.Response:
        """Ask for something small.

        Raises:
            httpx2.HTTPError: There is no answer.
        """
        headers = self._headers({})
        return await self._connected().get(url, headers=headers, timeout=_PROBE_TIMEOUT_S)

    async def models(self) -> list[dict[str, Any]] | None:
        """Give the cards of the models that the server has; None if it cannot be asked now.

        A server that has no such route has none.
        """
        try:
            response = await self.get(f"{self.addresses.v1}/models")
        except httpx2.HTTPError as exc:
            self.note(exc)
            return None
        if response.status_code >= 500 or response.status_code == 429:
            return None
        try:
            cards = orjson.loads(response.content)["data"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return []
        if not response.is_success or not isinstance(cards, list):
            return []
        return [card for card in cards if isinstance(card, dict) and card.get("id")]

    async def is_healthy(self, path: str) -> bool:
        """Ask the server's health endpoint.

        Args:
            path: Its path, such as `/health`. A server without that one, vLLM's, is healthy
                if it says so.
        """
        try:
            status = (await self.get(f"{self.addresses.root}{path}")).status_code
        except httpx2.HTTPError as exc:
            return self._note_health(False, repr(exc))
        is_healthy = 200 <= status <= 299 or (status == 404 and path == "/health")
        return self._note_health(is_healthy, f"it answers {status} to GET {path}")

    def note(self, exc: httpx2.HTTPError) -> None:
        """Log that a connection failed."""
        logger.warning("Upstream %s: %r", self.addresses.origin, exc)

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def close(self) -> None:
        """Close the connections, from a thread; the loop that they belong to has to run."""
        if self._loop is not None and self._loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(self.aclose(), self._loop)
            with contextlib.suppress(TimeoutError):
                closing.result(_CLOSE_TIMEOUT_S)

    def _note_health(self, is_healthy: bool, reason: str) -> bool:
        if is_healthy != self._was_healthy:
            self._was_healthy = is_healthy
            if is_healthy:
                logger.info("Upstream %s is healthy again", self.addresses.origin)
            else:
                logger.warning("Upstream %s is not healthy: %s", self.addresses.origin, reason)
        return is_healthy

    def _headers(self, headers: Mapping[str, str]) -> dict[bytes, bytes]:
        own = {} if self._api_key is None else {"authorization": f"Bearer {self._api_key}"}
        # As they came: httpx2 takes texts to be ASCII.
        return {
            name.lower().encode("latin-1"): value.encode("latin-1")
            for name, value in {**headers, **own, **_JSON}.items()
        }

    def _connected(self) -> httpx2.AsyncClient:
        """Give the client of the loop that runs: the connections of another one are lost."""
        if self._given_client is not None:
            return self._given_client
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop not in (None, loop):
            self._client = self._make_client()
        self._loop = loop
        return self._client

    def _make_client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            timeout=httpx2.Timeout(
                connect=_CONNECT_TIMEOUT_S,
                read=self._idle_timeout_s,
                write=self._idle_timeout_s,
                pool=None,
            ),
            limits=httpx2.Limits(
                max_connections=None,
                max_keepalive_connections=_MAX_IDLE_CONNECTIONS,
                keepalive_expiry=_KEEP_ALIVE_S,
            ),
            # It keeps none: what the server sets in the answer to one client is not for another.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )

    async def _send(self, client: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
        for _ in range(_CONNECT_ATTEMPTS - 1):
            try:
                return await client.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as exc:
                self.note(exc)
        return await client.send(request, stream=True)


async def _read_and_close(response: httpx2.Response) -> bytes:
    try:
        return await response.aread()
    finally:
        await response.aclose()
