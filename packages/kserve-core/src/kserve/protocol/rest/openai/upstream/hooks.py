"""The hooks of a proxy: the user's code that changes requests, answers and chunks on their way."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from kserve.executor import ModelThreads, awaited, is_async_callable
from kserve.pipeline import is_default_handler
from kserve.protocol.rest.openai.types import OpenAIRequest
from kserve.protocol.rest.openai.types.structs import OpenAIStruct
from kserve.protocol.rest.openai.upstream.documents import overlay
from kserve.protocol.rest.openai.upstream.errors import gateway_error

Document = dict[str, Any]


class Outcome(NamedTuple):
    """What became of several documents.

    Attributes:
        documents: Those before the failure, changed.
        failure: What was raised for the next one; None where there is none.
    """

    documents: list[Document]
    failure: Exception | None = None


class Hook:
    """A hook, called with as many arguments as it takes; what it gives, if anything, counts.

    Args:
        function: The method.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.is_async = is_async_callable(function)
        kinds = [each.kind for each in inspect.signature(function).parameters.values()]
        takes_any = inspect.Parameter.VAR_POSITIONAL in kinds
        positional = (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        )
        self._n_arguments = None if takes_any else sum(kind in positional for kind in kinds)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "Hook | None":
        """Give the hook of a method; None where a model does not override it."""
        return None if is_default_handler(function) else cls(function)

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        return self._function(*args[: self._n_arguments])

    async def run(self, threads: ModelThreads | None, *args: Any) -> Any:
        """Call it, a plain one on a thread of the model's, if there is one, and wait for it."""
        if self.is_async:
            return await awaited(self(*args))
        return self(*args) if threads is None else await threads.run(self, *args)


class RequestHook:
    """Changes requests.

    Args:
        hook: Called with the request, and the HTTP request.
    """

    def __init__(self, hook: Hook) -> None:
        self._hook = hook

    async def apply(
        self,
        request: OpenAIRequest,
        document: Document,
        raw_request: Any,
        threads: ModelThreads | None,
    ) -> tuple[OpenAIRequest, Document]:
        """Give the request as it is then, and the document with the changes.

        Args:
            request: The request, which may be changed in place.
            document: The whole of it, as the client has sent it.
            raw_request: The HTTP request.
            threads: Where plain hooks run.

        Raises:
            Exception: Whatever the hook raises.
        """
        before = request.model_dump()
        given = await self._hook.run(threads, request, raw_request)
        request = request if given is None else given
        return request, overlay(document, before, request.model_dump())


class AnswerHook:
    """Changes answers, or the chunks of one.

    Args:
        hook: Called with the answer, the request, and the HTTP request.
        kind: The type of the answer.
        is_validated: Whether its fields must have their types.
    """

    def __init__(self, hook: Hook, kind: type[OpenAIStruct], *, is_validated: bool) -> None:
        self._hook = hook
        self._kind = kind
        self._is_validated = is_validated

    async def apply(
        self, documents: Sequence[Document], args: tuple[Any, ...], threads: ModelThreads | None
    ) -> Outcome:
        """Change several documents, one after the other; plain hooks take one visit to a thread.

        Args:
            documents: The answers.
            args: The request, and the HTTP request.
            threads: Where plain hooks run.
        """
        if self._hook.is_async:
            return await self._apply_async(documents, args)
        if threads is None:
            return self._apply(documents, args)
        return await threads.run(self._apply, documents, args)

    def _apply(self, documents: Sequence[Document], args: tuple[Any, ...]) -> Outcome:
        changed: list[Document] = []
        for document in documents:
            try:
                answer, before = self._read(document)
                given = self._hook(answer, *args)
                changed.append(self._changed(document, before, answer if given is None else given))
            except Exception as exc:
                return Outcome(changed, exc)
        return Outcome(changed)

    async def _apply_async(self, documents: Sequence[Document], args: tuple[Any, ...]) -> Outcome:
        changed: list[Document] = []
        for document in documents:
            try:
                answer, before = self._read(document)
                given = await awaited(self._hook(answer, *args))
                changed.append(self._changed(document, before, answer if given is None else given))
            except Exception as exc:
                return Outcome(changed, exc)
        return Outcome(changed)

    def _read(self, document: Document) -> tuple[OpenAIStruct, Document]:
        answer = make_answer(self._kind, document, is_validated=self._is_validated)
        return answer, answer.model_dump()

    def _changed(self, document: Document, before: Document, answer: Any) -> Document:
        if not isinstance(answer, OpenAIStruct):
            raise TypeError(
                f"a hook: expected a {self._kind.__name__}, got {type(answer).__name__}"
            )
        changed: Document = overlay(document, before, answer.model_dump())
        return changed


def make_answer(
    kind: type[OpenAIStruct], document: Document, *, is_validated: bool
) -> OpenAIStruct:
    """Make an object of what the server has answered.

    Args:
        kind: The type of the answer.
        document: The answer.
        is_validated: Whether its fields must have their types; else they are taken as they are,
            objects within it as dicts, and those that are missing are None.

    Raises:
        OpenAIError: A field is missing, or of another type.
    """
    if not is_validated:
        fields = {
            field.name: document.get(field.encode_name)
            for field in msgspec.structs.fields(kind)
            if field.required or field.encode_name in document
        }
        return kind(**fields)
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as exc:
        raise gateway_error(
            502, f"the upstream server's answer is not a {kind.__name__}: {exc}"
        ) from exc
