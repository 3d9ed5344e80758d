"""Grammars that limit what is generated: compiled once, then one matcher for each sequence.

What the sampler takes is a `TokenConstraint`: it asks for the tokens that may come next, and says
which one came.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, Protocol

import numpy as np
import orjson
import torch
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark
from llguidance.hf import from_tokenizer
from numpy.typing import NDArray

from kserve.errors import InvalidInput
from kserve.listing import shortened
from kserve.protocol.rest.openai import OpenAIError, invalid_request

# The compiled form is larger, and made before the first token. vLLM and OpenAI have limits of the
# like: OpenAI's is 120,000 characters of names and values.
MAX_GRAMMAR_CHARS: Final = 120_000

# Each is some 100 KB.
_MAX_COMPILED: Final = 64

# Tokens back in which the tag that ends thoughts is looked for.
_TAG_TOKENS: Final = 16


class TokenConstraint(Protocol):
    """What limits the tokens of one sequence; it is the sequence's alone, on one thread."""

    def mask(self) -> NDArray[np.bool_]:
        """Give which tokens may come next, shape (n_vocabulary,); at least one may."""

    def accept(self, token_id: int) -> None:
        """Take note of the token that came."""


class Constraint:
    """A `TokenConstraint` as the sampler applies it, on the device of the logits."""

    def mask(self) -> NDArray[np.bool_]:
        """Give which tokens may come next, shape (n_vocabulary,)."""
        raise NotImplementedError

    def accept(self, token_id: int) -> None:
        """Take note of the token that came."""
        raise NotImplementedError

    def apply(self, logits: torch.Tensor) -> None:
        """Set the logits of all other tokens to minus infinity, in place.

        Args:
            logits: Shape (n_logits,). A model may have more of them than its tokenizer has tokens.
        """
        refused = torch.ones(len(logits), dtype=torch.bool)
        allowed = self.mask()[: len(logits)]
        refused[: len(allowed)] = torch.from_numpy(~allowed)
        logits.masked_fill_(refused.to(logits.device), -torch.inf)


class Grammar:
    """A compiled grammar."""

    def __init__(self, matcher: LLMatcher, n_vocabulary: int, eos_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._n_vocabulary = n_vocabulary
        self._eos_ids = eos_ids

    def constraint(self) -> "GrammarConstraint":
        """Begin a sequence."""
        return GrammarConstraint(self._matcher.deep_copy(), self._n_vocabulary, self._eos_ids)


class GrammarConstraint(Constraint):
    """One sequence that follows a grammar; its end is allowed only where the grammar ends.

    Args:
        matcher: At the beginning of the grammar, and nobody else's.
        n_vocabulary: The tokens that there are.
        eos_ids: Those that end a sequence.
    """

    def __init__(self, matcher: LLMatcher, n_vocabulary: int, eos_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._n_vocabulary = n_vocabulary
        self._eos_ids = list(eos_ids)

    def mask(self) -> NDArray[np.bool_]:
        """Give which tokens may come next.

        Raises:
            InvalidInput: The grammar has grown too complex for its matcher.
        """
        if self._matcher.is_stopped() and not self._matcher.is_error():
            allowed = np.zeros(self._n_vocabulary, np.bool_)
            allowed[self._eos_ids] = True
            return allowed
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        unpacked = np.unpackbits(bits, count=self._n_vocabulary, bitorder="little")
        allowed = unpacked.view(np.bool_)
        if allowed[self._eos_ids].any():
            allowed[self._eos_ids] = True
        return allowed

    def accept(self, token_id: int) -> None:
        """Take note of the token that came.

        Raises:
            InvalidInput: The grammar does not allow it.
        """
        if token_id not in self._eos_ids and not self._matcher.consume_token(token_id):
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            # The rest is the state of the matcher.
            reason = self._matcher.get_error().partition("\n")[0]
            raise InvalidInput(f"the grammar cannot be followed: {reason}")


class AfterThoughts(Constraint):
    """Leaves thoughts free, and begins behind them.

    Args:
        inner: What limits the rest.
        decode: Decodes tokens, special ones too.
        closing: The text that ends thoughts.
        opening_id: The token that begins them, allowed as the first one; None where none may begin.
        eos_ids: Those that end a sequence, which thoughts alone do not.
        is_thinking: The prompt ends amid thoughts.
    """

    def __init__(
        self,
        inner: Constraint,
        *,
        decode: Callable[[Sequence[int]], str],
        closing: str,
        opening_id: int | None,
        eos_ids: Collection[int],
        is_thinking: bool,
    ) -> None:
        self._inner = inner
        self._decode = decode
        self._closing = closing
        self._opening_id = opening_id
        self._eos_ids = list(eos_ids)
        self._is_thinking = is_thinking
        self._recent: list[int] = []

    def mask(self) -> NDArray[np.bool_]:
        """Give which tokens may come next."""
        allowed = self._inner.mask()
        if self._is_thinking:
            allowed = np.ones_like(allowed)
            allowed[self._eos_ids] = False
        elif self._opening_id is not None:
            allowed[self._opening_id] = True
        return allowed

    def accept(self, token_id: int) -> None:
        """Take note of the token that came."""
        if self._is_thinking:
            self._recent = [*self._recent[1 - _TAG_TOKENS :], token_id]
            self._is_thinking = self._closing not in self._decode(self._recent)
            return
        is_opening, self._opening_id = token_id == self._opening_id, None
        if is_opening:
            self._is_thinking = True
        else:
            self._inner.accept(token_id)


class GrammarCompiler:
    """Compiles grammars for a tokenizer, and keeps the latest; may be used on several threads.

    Args:
        tokenizer: A fast one, of transformers.
        n_vocabulary: Tokens of the model; None is as many as the tokenizer has.
        eos_ids: Those that end a sequence.

    Raises:
        InvalidInput: The tokenizer is not a fast one.
    """

    def __init__(
        self, tokenizer: Any, *, n_vocabulary: int | None = None, eos_ids: Iterable[int]
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InvalidInput(
                "structured output and calls that are required need a fast tokenizer, which this "
                "model has not"
            )
        self._n_vocabulary = max(len(tokenizer), n_vocabulary or 0)
        self._eos_ids = sorted(set(eos_ids)) or [tokenizer.eos_token_id]
        self._tokenizer = from_tokenizer(
            tokenizer, n_vocab=self._n_vocabulary, eos_token=self._eos_ids[0]
        )
        # llguidance takes some added tokens for special that are not.
        self._tags = {
            tag: token_id
            for tag, token_id in tokenizer.get_added_vocab().items()
            if tag and self._tokenizer.is_special_token(token_id)
        }
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()

    @property
    def eos_ids(self) -> Sequence[int]:
        """The tokens that end a sequence."""
        return self._eos_ids

    def json_schema(self, schema: Any, param: str, *, is_compact: bool = True) -> Grammar:
        """Compile a JSON schema.

        Args:
            schema: A dict, the text of one, or True for any value.
            param: The field of the request that has it.
            is_compact: No white space between values: small models write it without end.

        Raises:
            OpenAIError: It is none, or has keys that cannot be kept; they are named.
        """
        return self.compile(json_rule(schema, param, is_compact=is_compact), param)

    def regex(self, pattern: str, param: str) -> Grammar:
        """Compile a regular expression, in Rust's syntax, that the whole text fits.

        Raises:
            OpenAIError: It is none.
        """
        return self.compile(lambda: LLMatcher.grammar_from_regex(pattern), param, len(pattern))

    def choice(self, texts: Sequence[str], param: str) -> Grammar:
        """Compile a choice between texts.

        Raises:
            OpenAIError: There is none.
        """
        if not texts:
            raise invalid_request(f"'{param}': expected at least one text, got none", param)
        return self.compile(f"start: {' | '.join(map(self.literal, texts))}", param)

    def lark(self, grammar: str, param: str) -> Grammar:
        """Compile a grammar of Lark, as llguidance has it, or of GBNF, as llama.cpp has it.

        Raises:
            OpenAIError: It is none.
        """
        return self.compile(lambda: any_to_lark(grammar), param, len(grammar))

    def literal(self, text: str) -> str:
        """Give what is a text in Lark; of tags that are tokens it has those."""
        if not text:
            return '""'
        found = [(text.index(tag), -len(tag), tag) for tag in self._tags if tag in text]
        if not found:
            return orjson.dumps(text).decode()
        place, _, tag = min(found)
        parts = [text[:place], tag, text[place + len(tag) :]]
        return " ".join(
            f"<[{self._tags[tag]}]>" if part is tag else self.literal(part)
            for part in parts
            if part
        )

    def compile(
        self, source: str | Callable[[], str], param: str, n_chars: int | None = None
    ) -> Grammar:
        """Compile a grammar in llguidance's form, or find it among the latest.

        Args:
            source: The grammar, or what makes it.
            param: The field of the request that has it.
            n_chars: How long what the client sent is; None is as long as the grammar.

        Raises:
            OpenAIError: It is too long, or none.
        """
        _check_size(len(source) if isinstance(source, str) else n_chars or 0, param)
        try:
            grammar = source if isinstance(source, str) else source()
        except (GbnfToLarkError, ValueError) as exc:
            raise _refusal(param, str(exc)) from exc
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar]
        compiled = self._compile(grammar, param)
        with self._lock:
            self._compiled[grammar] = compiled
            while len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        return compiled

    def _compile(self, grammar: str, param: str) -> Grammar:
        problem = LLMatcher.validate_grammar(grammar, self._tokenizer)
        if problem:
            raise _refusal(param, problem)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _refusal(param, matcher.get_error())
        return Grammar(matcher, self._n_vocabulary, self._eos_ids)


def json_rule(schema: Any, param: str, *, is_compact: bool = True) -> str:
    """Give the grammar of a JSON schema, in Lark.

    Raises:
        OpenAIError: It is no schema.
    """
    return f"start: {json_value(schema, param, is_compact=is_compact)}"


def json_value(schema: Any, param: str, *, is_compact: bool = True) -> str:
    """Give what stands in a rule of Lark for a value of a JSON schema.

    Raises:
        OpenAIError: It is no schema.
    """
    if isinstance(schema, str):
        _check_size(len(schema), param)
        try:
            schema = orjson.loads(schema)
        except orjson.JSONDecodeError as exc:
            raise _refusal(param, f"expected a JSON schema: {exc}") from exc
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise invalid_request(
            f"'{param}': expected a JSON schema, got {shortened(repr(schema))}", param
        )
    own = schema.get("x-guidance")
    options = {
        **(own if isinstance(own, dict) else {}),
        "whitespace_flexible": not is_compact,
    }
    return f"%json {orjson.dumps({**schema, 'x-guidance': options}).decode()}"


def _check_size(n_chars: int, param: str) -> None:
    if n_chars > MAX_GRAMMAR_CHARS:
        raise invalid_request(
            f"'{param}': expected at most {MAX_GRAMMAR_CHARS} characters, got {n_chars}",
            param,
            "schema_too_large",
        )


def _refusal(param: str, problem: str) -> OpenAIError:
    text = " ".join(problem.split())
    return invalid_request(f"'{param}': {shortened(text)}", param, "unsupported_schema")
