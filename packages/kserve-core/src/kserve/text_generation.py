"""Text in, text out: what a model is that answers `generate` and `generate_stream`.

Source: the generate extension of the Open Inference Protocol v2,
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/generate_rest.yaml
and that of Triton, which also takes parameters beside `text_input`,
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["GenerateRequest", "GeneratedText", "TextGenerator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """A text to go on with.

    Attributes:
        text_input: The text.
        parameters: How; their names and meanings are the model's. What the client sent beside
            `text_input` is among them.
        id: The request's id; that of the HTTP request where the client sent none.
        stream: The client wants the text as it is made.
    """

    text_input: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    stream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedText:
    """A text, or in a stream the next piece of one.

    Attributes:
        text_output: The text.
        details: What else there is to say, such as why it ended; JSON values.
        is_last: In a stream: nothing comes after it.
    """

    text_output: str
    details: Mapping[str, Any] | None = None
    is_last: bool = False


class TextGenerator:
    """A model that writes text; beside `Model` or `TensorModel` as a base class.

    The V2 routes `generate` and `generate_stream` are its.
    """

    def generate(
        self, request: GenerateRequest, headers: dict[str, str] | None = None
    ) -> GeneratedText | Iterator[GeneratedText] | AsyncIterator[GeneratedText]:
        """Go on with a text; may be a coroutine function, a generator or an async generator.

        Pieces are joined where the client wants one text. Whatever it raises is answered as what
        `predict` raises; amid a stream, by an event with the error.

        Args:
            request: The text.
            headers: Of the request, lower-case; a method need not take them.

        Raises:
            NotImplementedError: Always; a model that writes text overrides it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement generate")
