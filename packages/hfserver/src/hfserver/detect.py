"""Which task a directory's model is for, told from its files, without loading it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Final

import orjson

from kserve.artifact import list_directory
from kserve.errors import ModelLoadError, ModelMissingError
from kserve.listing import listing, quoted

CONFIG_FILE: Final = "config.json"

# Of sentence-transformers: the modules that make an embedding of a text, in order.
MODULES_FILE: Final = "modules.json"


class Task(StrEnum):
    """What a model does, in the words of KServe's Hugging Face server."""

    SEQUENCE_CLASSIFICATION = "sequence_classification"
    TOKEN_CLASSIFICATION = "token_classification"
    FILL_MASK = "fill_mask"
    TEXT_EMBEDDING = "text_embedding"
    TEXT_GENERATION = "text_generation"
    TEXT2TEXT_GENERATION = "text2text_generation"
    QUESTION_ANSWERING = "question_answering"
    TABLE_QUESTION_ANSWERING = "table_question_answering"
    MULTIPLE_CHOICE = "multiple_choice"
    TIME_SERIES_FORECAST = "time_series_forecast"


ENCODER_TASKS: Final = (
    Task.SEQUENCE_CLASSIFICATION,
    Task.TOKEN_CLASSIFICATION,
    Task.FILL_MASK,
    Task.TEXT_EMBEDDING,
)
GENERATIVE_TASKS: Final = (Task.TEXT_GENERATION, Task.TEXT2TEXT_GENERATION)

# Transformers' tables of classes by the type of a model. Of a class that stands in several, such as
# BartForConditionalGeneration, the first counts. The bare encoders come last.
_TABLES: Final = (
    ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", Task.SEQUENCE_CLASSIFICATION),
    ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", Task.TOKEN_CLASSIFICATION),
    ("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES", Task.QUESTION_ANSWERING),
    ("MODEL_FOR_TABLE_QUESTION_ANSWERING_MAPPING_NAMES", Task.TABLE_QUESTION_ANSWERING),
    ("MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES", Task.MULTIPLE_CHOICE),
    ("MODEL_FOR_TIME_SERIES_PREDICTION_MAPPING_NAMES", Task.TIME_SERIES_FORECAST),
    ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", Task.TEXT2TEXT_GENERATION),
    ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", Task.FILL_MASK),
    ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", Task.TEXT_GENERATION),
    ("MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES", Task.TEXT_EMBEDDING),
    ("MODEL_MAPPING_NAMES", Task.TEXT_EMBEDDING),
)

# What custom code of a checkpoint calls its classes by, in `auto_map` of config.json.
_AUTO_CLASSES: Final = {
    "AutoModelForSequenceClassification": Task.SEQUENCE_CLASSIFICATION,
    "AutoModelForTokenClassification": Task.TOKEN_CLASSIFICATION,
    "AutoModelForQuestionAnswering": Task.QUESTION_ANSWERING,
    "AutoModelForSeq2SeqLM": Task.TEXT2TEXT_GENERATION,
    "AutoModelForMaskedLM": Task.FILL_MASK,
    "AutoModelForCausalLM": Task.TEXT_GENERATION,
    "AutoModel": Task.TEXT_EMBEDDING,
}


@dataclass(frozen=True, slots=True)
class Detected:
    """What was found.

    Attributes:
        task: The task.
        reason: Why it is that one, for the log.
        architecture: The class of the model, as `config.json` names it; empty where it names none.
    """

    task: Task
    reason: str
    architecture: str = ""

    @property
    def is_generative(self) -> bool:
        """Whether the model writes text."""
        return self.task in GENERATIVE_TASKS


def detect(directory: Path, task: Task | None = None) -> Detected:
    """Tell the task of the model of a directory.

    A directory with `modules.json` is one of sentence-transformers, and embeds; any other is for
    what transformers has the class of the model for, and a class without a head embeds, too.

    Args:
        directory: The directory of the model.
        task: What the command line says; it wins.

    Raises:
        ModelMissingError: The directory holds neither file.
        ModelLoadError: A file cannot be read, or the task cannot be told from it.
    """
    names = list_directory(directory)
    if CONFIG_FILE not in names and MODULES_FILE not in names:
        raise ModelMissingError(
            directory, f"expected {CONFIG_FILE} or {MODULES_FILE}; found {listing(names)}"
        )
    config = _read_object(directory / CONFIG_FILE) if CONFIG_FILE in names else {}
    architecture = next(iter(config.get("architectures") or ()), "")
    if task is not None:
        return Detected(task, "--task says so", architecture)
    if MODULES_FILE in names and not _is_cross_encoder(config, architecture):
        return Detected(Task.TEXT_EMBEDDING, f"it has a {MODULES_FILE}", architecture)
    found = _tables().get(architecture) or _of_pretraining(config, architecture)
    if found is not None:
        return Detected(found, f"{CONFIG_FILE} names {architecture}", architecture)
    found = _of_custom_code(config.get("auto_map") or {}, architecture)
    if found is not None:
        return Detected(found, f"auto_map of {CONFIG_FILE} has a class for it", architecture)
    raise ModelLoadError(
        f"{directory}: the task cannot be told from {CONFIG_FILE}, whose architectures are "
        f"{config.get('architectures')}: say it with --task, one of {quoted(supported_tasks())}"
    )


def supported_tasks() -> list[str]:
    """Give the tasks that a model can be served for."""
    return [task.value for task in (*ENCODER_TASKS, *GENERATIVE_TASKS)]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as exc:
        raise ModelLoadError(f"{path}: {exc}") from exc
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _is_cross_encoder(config: Mapping[str, Any], architecture: str) -> bool:
    """Say whether it is a CrossEncoder, which newer sentence-transformers saves with modules."""
    return (
        "sentence_transformers" in config
        and _tables().get(architecture) is Task.SEQUENCE_CLASSIFICATION
    )


@cache
def _tables() -> Mapping[str, Task]:
    """Give the tasks by the names of transformers' classes."""
    from transformers.models.auto import modeling_auto

    tasks: dict[str, Task] = {}
    for table, task in _TABLES:
        for names in getattr(modeling_auto, table, {}).values():
            for name in (names,) if isinstance(names, str) else names:
                tasks.setdefault(name, task)
    return tasks


def _of_pretraining(config: Mapping[str, Any], architecture: str) -> Task | None:
    """Give the task of a class that was only pretrained, such as BertForPreTraining.

    It fills masks if a class of its type does.
    """
    from transformers.models.auto import modeling_auto

    model_type = config.get("model_type")
    pretraining = modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES.get(model_type)
    fills_masks = model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return Task.FILL_MASK if fills_masks and pretraining == architecture else None


def _of_custom_code(auto_map: Mapping[str, Any], architecture: str) -> Task | None:
    for auto_class, task in _AUTO_CLASSES.items():
        reference = auto_map.get(auto_class)
        if isinstance(reference, str) and reference.rpartition(".")[2] == architecture:
            return task
    return None
