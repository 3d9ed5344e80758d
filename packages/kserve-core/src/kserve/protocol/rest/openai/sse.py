"""Server-sent events, as OpenAI streams them: `data: {json}`, and `data: [DONE]` at the end.

Source: HTML, "Server-sent events", https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from typing import Final

# The data of the event that ends a stream.
DONE: Final = "[DONE]"

DONE_EVENT: Final = b"data: [DONE]\n\n"


def event(data: bytes) -> bytes:
    """Give the event with some JSON in it; JSON has no line ends."""
    return b"data: %b\n\n" % data
