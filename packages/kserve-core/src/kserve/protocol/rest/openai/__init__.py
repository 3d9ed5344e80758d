"""OpenAI's routes, and those of vLLM, Jina and Cohere beside them, for any model.

Nothing of it is loaded before a name is used: a server without such a model pays nothing.
"""

from typing import TYPE_CHECKING

from kserve.exports import lazy_dir, lazy_exports

if TYPE_CHECKING:
    from kserve.protocol.rest.openai.errors import (
        OpenAIError,
        create_error_response,
        invalid_request,
        unsupported_api,
    )
    from kserve.protocol.rest.openai.openai_chat_adapter_model import OpenAIChatAdapterModel
    from kserve.protocol.rest.openai.openai_model import (
        ChatPrompt,
        OpenAIEncoderModel,
        OpenAIGenerativeModel,
        OpenAIModel,
    )
    from kserve.protocol.rest.openai.openai_proxy_model import OpenAIProxyModel
    from kserve.protocol.rest.openai.types import (
        ChatCompletionMessageParam,
        ChatCompletionRequest,
        CompletionRequest,
        ErrorResponse,
    )
    from kserve.protocol.rest.openai.vectors import truncated

__all__ = [
    "ChatCompletionMessageParam",
    "ChatCompletionRequest",
    "ChatPrompt",
    "CompletionRequest",
    "ErrorResponse",
    "OpenAIChatAdapterModel",
    "OpenAIEncoderModel",
    "OpenAIError",
    "OpenAIGenerativeModel",
    "OpenAIModel",
    "OpenAIProxyModel",
    "create_error_response",
    "invalid_request",
    "truncated",
    "unsupported_api",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "kserve.protocol.rest.openai.errors": [
            *("OpenAIError", "create_error_response", "invalid_request", "unsupported_api"),
        ],
        "kserve.protocol.rest.openai.openai_chat_adapter_model": ["OpenAIChatAdapterModel"],
        "kserve.protocol.rest.openai.openai_model": [
            *("ChatPrompt", "OpenAIEncoderModel", "OpenAIGenerativeModel", "OpenAIModel"),
        ],
        "kserve.protocol.rest.openai.openai_proxy_model": ["OpenAIProxyModel"],
        "kserve.protocol.rest.openai.types": [
            *("ChatCompletionMessageParam", "ChatCompletionRequest", "CompletionRequest"),
            "ErrorResponse",
        ],
        "kserve.protocol.rest.openai.vectors": ["truncated"],
    },
)

__dir__ = lazy_dir(__name__)
