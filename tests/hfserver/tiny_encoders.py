"""Encoders of chance, small enough to make in a test, of every family that the engine knows."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = (
    *("the", "cat", "dog", "sat", "on", "a", "mat", "ran", "far", "away", "and", "came", "back"),
    *("home", "to", "eat", "red", "fish", "with", "Anna", "Berlin", "in", "from", "query", ":"),
    *("##s", "##ed", "##ing", "walk", "jump", "small", "large", "house", "tree", "under", "over"),
)
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIALS, *WORDS)

_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]

# Weights so large that tokens matter: with those of training, 0.02, all texts give nearly the same.
INITIALIZER_RANGE = 0.35


def make_tokenizer(**kwargs: Any) -> PreTrainedTokenizerFast:
    """Make a tokenizer of whole words that adds [CLS] and [SEP], as BERT's does."""
    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **dict(zip(names, SPECIALS, strict=True)),
        **{"model_max_length": 64, "model_input_names": _INPUTS, **kwargs},
    )


def config_of(family: str, **kwargs: Any) -> Any:
    """Give the configuration of a small model of a family, by transformers' name of it."""
    config_class = getattr(transformers, f"{family}Config")
    return config_class(**{**sizes(), **_OTHER_SIZES.get(family, {}), **kwargs})


def bert_config(**kwargs: Any) -> Any:
    """Give the configuration of a small BERT."""
    return config_of("Bert", **kwargs)


def sizes() -> dict[str, Any]:
    """Give what most families call their sizes."""
    return {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "initializer_range": INITIALIZER_RANGE,
        "pad_token_id": 0,
        "cls_token_id": 2,
        "bos_token_id": 2,
        "sep_token_id": 3,
        "eos_token_id": 3,
        "mask_token_id": 4,
        "tie_word_embeddings": False,
    }


_FEWER_KEY_HEADS = {"num_key_value_heads": 2, "head_dim": 8}
_ROBERTA = {"pad_token_id": 1, "max_position_embeddings": 66, "type_vocab_size": 1}
_DISENTANGLED = {
    "type_vocab_size": 0,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
}

# What families call in another way, and what makes them what they are.
_OTHER_SIZES: dict[str, dict[str, Any]] = {
    "Albert": {"embedding_size": 16},
    "Camembert": _ROBERTA,
    "Data2VecText": _ROBERTA,
    "Deberta": _DISENTANGLED,
    "DebertaV2": _DISENTANGLED,
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "Electra": {"embedding_size": 16},
    "EuroBert": _FEWER_KEY_HEADS,
    "Gemma3Text": {
        **_FEWER_KEY_HEADS,
        "sliding_window": 8,
        "use_bidirectional_attention": True,
        "query_pre_attn_scalar": 8,
    },
    "Llama": _FEWER_KEY_HEADS,
    "MPNet": {"pad_token_id": 1, "max_position_embeddings": 66},
    "Mistral": {**_FEWER_KEY_HEADS, "sliding_window": 8},
    "MobileBert": {"embedding_size": 16},
    "ModernBert": {"local_attention": 16, "num_hidden_layers": 4},
    "Qwen3": _FEWER_KEY_HEADS,
    "Roberta": _ROBERTA,
    "XLMRoberta": _ROBERTA,
}


def save(directory: Path, model: Any, tokenizer: Any = None, **kwargs: Any) -> Path:
    """Save a model and its tokenizer."""
    model.save_pretrained(directory, **kwargs)
    (tokenizer or make_tokenizer()).save_pretrained(directory)
    return directory


def make(model_class: Any, config: Any, seed: int = 0) -> Any:
    """Make a model of chance; its biases are not zero, as those of a trained one."""
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model
