"""A custom model server: how easy English texts are to read, by Flesch's formula."""

import re
from typing import Any

import numpy as np

import kserve
from kserve.errors import InvalidInput
from kserve.utils.utils import get_predict_input, get_predict_response


class ReadingEase(kserve.Model):
    """Scores texts: about 90 is easy for a child of eleven, below 30 takes a degree."""

    def predict(self, payload: Any, headers: dict[str, str] | None = None) -> Any:
        """Answer a V1 or a V2 request with one score for each text."""
        texts = np.asarray(get_predict_input(payload), dtype=object).ravel()
        scores = np.array([reading_ease(text) for text in texts], dtype=float)
        return get_predict_response(payload, scores, self.name)

    def get_input_types(self) -> list[dict[str, Any]]:
        """Describe the input in the model's metadata."""
        return [{"name": "text", "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Describe the output in the model's metadata."""
        return [{"name": "output-0", "datatype": "FP64", "shape": [-1]}]


def reading_ease(text: Any) -> float:
    """Give Flesch's score; a group of vowels counts as a syllable."""
    words = re.findall(r"[a-z']+", text.lower()) if isinstance(text, str) else []
    if not words:
        raise InvalidInput(f"expected a text with English words, got {text}")
    n_sentences = len(re.findall(r"[.!?]+", text)) or 1
    n_syllables = sum(len(re.findall("[aeiouy]+", word)) or 1 for word in words)
    score = 206.835 - 1.015 * len(words) / n_sentences - 84.6 * n_syllables / len(words)
    return round(score, 1)


if __name__ == "__main__":
    kserve.ModelServer().start([ReadingEase("reading-ease")])
