"""The flags of chats; needs neither torch nor transformers."""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """What the command line says about chats.

    Attributes:
        chat_template: A file with a template in Jinja, or the template itself; None for the
            tokenizer's own.
        response_template: A file with a response template, as transformers has it; None for the
            tokenizer's own, or that of the model's family.
        allow_control_tokens: Control tokens in the text of a request are control tokens.
        trust_request_chat_template: A request may bring a template.
    """

    chat_template: str | None = None
    response_template: str | None = None
    allow_control_tokens: bool = False
    trust_request_chat_template: bool = False

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "ChatOptions":
        """Give what a parsed command line says."""
        return cls(
            chat_template=args.chat_template,
            response_template=args.response_template,
            allow_control_tokens=args.allow_control_tokens,
            trust_request_chat_template=args.trust_request_chat_template,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser."""
    add = parser.add_argument_group("chats").add_argument
    add(
        "--chat_template",
        "--chat-template",
        metavar="FILE",
        help="a template in Jinja, or a file with one (the tokenizer's own)",
    )
    add(
        "--response_template",
        "--response-template",
        metavar="FILE",
        help="how thoughts and calls are read, in JSON (the tokenizer's own, or the family's)",
    )
    add(
        "--allow_control_tokens",
        action="store_true",
        help="take control tokens in the text of requests for what they are, not for text "
        "(%(default)s)",
    )
    add(
        "--trust_request_chat_template",
        "--trust-request-chat-template",
        action="store_true",
        help="take templates from requests, which may compute without end (%(default)s)",
    )
