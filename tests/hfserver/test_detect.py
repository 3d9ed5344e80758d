"""Tasks, told from the files of a directory."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from hfserver.detect import Task, detect
from kserve.errors import ModelLoadError, ModelMissingError


def write(directory: Path, config: Any, **files: Any) -> Path:
    (directory / "config.json").write_bytes(orjson.dumps(config))
    for name, content in files.items():
        (directory / f"{name}.json").write_bytes(orjson.dumps(content))
    return directory


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", Task.SEQUENCE_CLASSIFICATION),
        ("ModernBertForSequenceClassification", Task.SEQUENCE_CLASSIFICATION),
        ("DistilBertForTokenClassification", Task.TOKEN_CLASSIFICATION),
        ("RobertaForMaskedLM", Task.FILL_MASK),
        ("BertModel", Task.TEXT_EMBEDDING),
        ("MPNetModel", Task.TEXT_EMBEDDING),
        ("T5EncoderModel", Task.TEXT_EMBEDDING),
        ("LlamaForCausalLM", Task.TEXT_GENERATION),
        ("GPT2LMHeadModel", Task.TEXT_GENERATION),
        ("Qwen3ForCausalLM", Task.TEXT_GENERATION),
        ("T5ForConditionalGeneration", Task.TEXT2TEXT_GENERATION),
        ("BartForConditionalGeneration", Task.TEXT2TEXT_GENERATION),
        ("BertForQuestionAnswering", Task.QUESTION_ANSWERING),
        ("BertForMultipleChoice", Task.MULTIPLE_CHOICE),
    ],
)
def test_a_class_of_transformers_tells_the_task(
    architecture: str, task: Task, tmp_path: Path
) -> None:
    detected = detect(write(tmp_path, {"architectures": [architecture]}))

    assert (detected.task, detected.architecture) == (task, architecture)
    assert detected.reason == f"config.json names {architecture}"


@pytest.mark.parametrize(
    ("config", "files", "task"),
    [
        pytest.param(
            {"architectures": ["BertModel"]}, {"modules": []}, Task.TEXT_EMBEDDING, id="modules"
        ),
        pytest.param(
            {"architectures": ["MistralForCausalLM"]},
            {"modules": []},
            Task.TEXT_EMBEDDING,
            id="modules beside a decoder",
        ),
        pytest.param({}, {"modules": []}, Task.TEXT_EMBEDDING, id="modules, and no architecture"),
        pytest.param(
            {
                "architectures": ["BertForSequenceClassification"],
                "sentence_transformers": {"version": "6.2.0"},
            },
            {"modules": []},
            Task.SEQUENCE_CLASSIFICATION,
            id="a cross-encoder with modules",
        ),
        pytest.param(
            {"architectures": ["BertForPreTraining"], "model_type": "bert"},
            {},
            Task.FILL_MASK,
            id="pretrained alone",
        ),
        pytest.param(
            {
                "architectures": ["OwnForRanking"],
                "auto_map": {
                    "AutoModel": "own.OwnModel",
                    "AutoModelForSequenceClassification": "own.OwnForRanking",
                },
            },
            {},
            Task.SEQUENCE_CLASSIFICATION,
            id="code of its own",
        ),
    ],
)
def test_other_files_tell_the_task(config: Any, files: Any, task: Task, tmp_path: Path) -> None:
    assert detect(write(tmp_path, config, **files)).task is task


def test_modules_need_no_configuration_at_the_top(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")

    assert detect(tmp_path).task is Task.TEXT_EMBEDDING


def test_the_command_line_wins(tmp_path: Path) -> None:
    directory = write(tmp_path, {"architectures": ["BertForMaskedLM"]}, modules=[])

    detected = detect(directory, Task.SEQUENCE_CLASSIFICATION)

    assert (detected.task, detected.is_generative) == (Task.SEQUENCE_CLASSIFICATION, False)
    assert detected.reason == "--task says so"


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"architectures": ["ViTForImageClassification"]}, id="no text"),
        pytest.param({"architectures": None, "model_type": "bert"}, id="null"),
        pytest.param({}, id="empty"),
    ],
)
def test_what_cannot_be_told_asks_for_the_flag(config: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"say it with --task, one of 'sequence_class"):
        detect(write(tmp_path, config))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_configuration_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(ModelLoadError, match=r"config\.json: "):
        detect(tmp_path)


def test_a_directory_of_something_else_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()

    with pytest.raises(
        ModelMissingError, match=r"expected config\.json or modules\.json; found model\.onnx"
    ):
        detect(tmp_path)
