"""A tokenizer of chats, trained in a second on a text of the standard library."""

import functools
import pydoc_data.topics as pages
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{%- if tools %}<|im_start|>system\n<tools>"
    "{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools><|im_end|>\n{% endif %}"
    "{%- for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "<tool_call>\n{{ call['function'] | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
SPECIALS = ("<s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen's and Hermes' tokenizers have them as tokens that are not special.
ADDED = ("<tool_call>", "</tool_call>", "<think>", "</think>")


@functools.cache
def _backend(size: int) -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for _, text in sorted(pages.topics.items())][:40]
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    return str(backend.to_str())


def make_chat_tokenizer(
    template: Any = CHATML, *, size: int = 800, bos: bool = False, **kwargs: Any
) -> Any:
    """Make a byte-level BPE tokenizer with the tokens of ChatML.

    Args:
        template: The chat template, or several by their names.
        size: The size of the vocabulary without the added tokens.
        bos: Whether it begins each text with <s>.
        kwargs: For the tokenizer.
    """
    from tokenizers import processors

    backend = Tokenizer.from_str(_backend(size))
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>", **kwargs
    )
    tokenizer.chat_template = template
    return tokenizer
