"""A text model of two functions: takes names out of texts, as the patterns beside it say."""

from pathlib import Path

from pipeline import Pipeline

from kserve.errors import InvalidInput


def load(model_dir: str) -> Pipeline:
    """Make the pipeline, once, when the server starts."""
    return Pipeline.from_disk(Path(model_dir) / "patterns.jsonl")


def predict(nlp: Pipeline, texts: list[str]) -> list[str]:
    """Give each text with its entities replaced by their labels.

    Raises:
        InvalidInput: The instances are no texts; the client reads why.
    """
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidInput("expected texts, got instances of another kind")
    return [nlp(text).redacted() for text in texts]
