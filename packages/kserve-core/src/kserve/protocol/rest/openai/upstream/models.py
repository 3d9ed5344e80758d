"""What a server calls the model that a proxy serves, and how long its texts may be."""

import asyncio
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, Final

from kserve.listing import quoted
from kserve.logging import logger
from kserve.protocol.rest.openai.upstream.server import Upstream

# After which the server is asked again that could not say, or whose answer has proved wrong.
_AGAIN_S: Final = 5.0

Card = Mapping[str, Any]


class UpstreamModel:
    """The model behind a proxy, as the server's own list of models has it.

    Args:
        upstream: The server.
        name: What the proxy calls it.
        asked_as: What the server calls it; None is the same name, or that of the server's only
            model.

    Attributes:
        max_model_len: How many tokens it takes, if the server says so.
    """

    def __init__(self, upstream: Upstream, name: str, asked_as: str | None = None) -> None:
        self._upstream = upstream
        self._name = name
        self._given = asked_as
        self._found: str | None = None
        self._is_known = False
        self._ask_at = 0.0
        # Of the loop that runs: the first requests wait for the answer to one of them.
        self._lock: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.max_model_len: int | None = None

    async def name(self, default: str) -> str:
        """Give what the server calls it.

        Args:
            default: What the client calls it.
        """
        if not self._is_known:
            await self.look()
        return self._given or self._found or default

    def forget(self) -> None:
        """Take note that the server does not know the name."""
        self._is_known = False

    async def look(self) -> None:
        """Ask the server, unless it is known, or has been asked a moment ago."""
        async with self._locked():
            if not self._is_known and perf_counter() >= self._ask_at:
                await self._ask()

    def _locked(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._lock is None or self._loop is not loop:
            self._lock, self._loop = asyncio.Lock(), loop
        return self._lock

    async def _ask(self) -> None:
        cards = await self._upstream.models()
        self._ask_at = perf_counter() + _AGAIN_S
        if cards is None:
            return
        self._is_known = True
        card = self._choose(cards)
        self._found = None if card is None else str(card["id"])
        length = None if card is None else card.get("max_model_len")
        self.max_model_len = length if isinstance(length, int) else None
        self._report(cards, card)

    def _choose(self, cards: Sequence[Card]) -> Card | None:
        wanted = self._given or self._name
        for card in cards:
            if card["id"] == wanted:
                return card
        # Adapters of vLLM's name the model that they belong to.
        models = [card for card in cards if not card.get("parent")]
        return models[0] if self._given is None and len(models) == 1 else None

    def _report(self, cards: Sequence[Card], card: Card | None) -> None:
        origin = self._upstream.addresses.origin
        if card is not None:
            logger.info("Model %s is %r of upstream %s", self._name, card["id"], origin)
        elif cards:
            logger.warning(
                "Upstream %s has no model %r, but %s",
                *(origin, self._given or self._name, quoted([str(each["id"]) for each in cards])),
            )
