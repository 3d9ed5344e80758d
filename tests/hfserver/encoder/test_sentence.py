"""Modules of sentence-transformers: every pooling, every layer, and what they are refused for."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import save_file
from tests.hfserver.tiny_encoders import bert_config, make, save
from transformers import BertModel

from hfserver.encoder.load import Encoder, Output, load_encoder
from hfserver.encoder.sentence import POOLING_MODES, cut, normalized, read_pipeline
from hfserver.encoder.tokenization import TokenizeOptions
from hfserver.loading import LoadOptions, open_checkpoint
from kserve.errors import InvalidInput, ModelLoadError

OPTIONS = LoadOptions(device="cpu", dtype="float32")
TEXTS = ("the cat sat on a mat", "a dog", "the small dog ran far away and came back home")
PROMPT = "query : "
SIZE = 32


class Checkpoint:
    """A directory of sentence-transformers, of which modules are added one by one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.modules: list[dict[str, Any]] = []
        save(directory, make(BertModel, bert_config()))
        self.add("Transformer", "")

    def add(
        self,
        kind: str,
        path: str,
        config: Any = None,
        weights: dict[str, torch.Tensor] | None = None,
    ) -> "Checkpoint":
        number = len(self.modules)
        self.modules.append(
            {
                "idx": number,
                "name": str(number),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
        )
        (self.directory / path).mkdir(exist_ok=True)
        if config is not None:
            self.write(f"{path}/config.json", config)
        if weights is not None:
            save_file(weights, self.directory / path / "model.safetensors")
        self.write("modules.json", self.modules)
        return self

    def write(self, name: str, value: Any) -> None:
        (self.directory / name).write_bytes(orjson.dumps(value))

    def load(self, pooling: str | None = None) -> Encoder:
        checkpoint = open_checkpoint(self.directory, None, OPTIONS)
        return load_encoder("m", Output.EMBEDDING, checkpoint, OPTIONS, pooling=pooling)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path / "model")


def embed(encoder: Encoder, *texts: str, prompt: str = "") -> np.ndarray:
    async def work() -> list[Any]:
        options = TokenizeOptions(prompt=prompt)
        return await encoder.engine.run(await encoder.tokenizer.tokenize(texts, options))

    return np.stack(asyncio.run(work()))


def oracle(checkpoint: Checkpoint, *texts: str, prompt: str = "") -> np.ndarray:
    """Give what sentence-transformers gives."""
    transformers = pytest.importorskip("sentence_transformers")
    model = transformers.SentenceTransformer(str(checkpoint.directory), device="cpu")
    return np.asarray(model.encode(list(texts), prompt=prompt or None))


def assert_as_sentence_transformers(checkpoint: Checkpoint, prompt: str = "") -> None:
    expected = oracle(checkpoint, *TEXTS, prompt=prompt)
    actual = embed(checkpoint.load(), *TEXTS, prompt=prompt)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


pytestmark = [
    # It warns of what it changes in its own interfaces.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(60),
    pytest.mark.slow,
]


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("prompt", ["", PROMPT], ids=["plain", "prompt"])
def test_a_pooling_by_its_name(checkpoint: Checkpoint, mode: str, prompt: str) -> None:
    config = {"embedding_dimension": SIZE, "pooling_mode": mode, "include_prompt": not prompt}
    checkpoint.add("Pooling", "1_Pooling", config)

    assert_as_sentence_transformers(checkpoint, prompt)


FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@pytest.mark.parametrize(
    "flags",
    [
        [],
        *([flag] for flag in FLAGS),
        ["pooling_mode_lasttoken", "pooling_mode_mean_tokens", "pooling_mode_cls_token"],
    ],
    ids=lambda flags: "+".join(FLAGS[flag] for flag in flags) or "none",
)
def test_a_pooling_by_flags(checkpoint: Checkpoint, flags: list[str]) -> None:
    config = {"word_embedding_dimension": SIZE, **{flag: flag in flags for flag in FLAGS}}
    checkpoint.add("Pooling", "1_Pooling", config)

    assert_as_sentence_transformers(checkpoint)


def test_several_poolings_one_behind_the_other(checkpoint: Checkpoint) -> None:
    config = {"embedding_dimension": SIZE, "pooling_mode": ["max", "cls"]}
    checkpoint.add("Pooling", "1_Pooling", config)

    assert_as_sentence_transformers(checkpoint)


def add_pooling(checkpoint: Checkpoint) -> Checkpoint:
    return checkpoint.add("Pooling", "1_Pooling", {"embedding_dimension": SIZE})


@pytest.mark.parametrize("activation", ["Tanh", "Identity", "GELU", None])
@pytest.mark.parametrize(
    ("n_out", "bias", "residual"), [(8, True, False), (32, False, True), (8, True, True)]
)
def test_all_layers_behind_it(
    checkpoint: Checkpoint, activation: str | None, n_out: int, bias: bool, residual: bool
) -> None:
    torch.manual_seed(1)
    config: dict[str, Any] = {"in_features": SIZE, "out_features": n_out, "bias": bias}
    weights = {"linear.weight": torch.randn(n_out, SIZE)}
    if bias:
        weights["linear.bias"] = torch.randn(n_out)
    if residual:
        config["use_residual"] = True
    if residual and n_out != SIZE:
        weights["residual.weight"] = torch.randn(n_out, SIZE)
    if activation:
        config["activation_function"] = f"torch.nn.modules.activation.{activation}"
        if activation == "Identity":
            config["activation_function"] = "torch.nn.modules.linear.Identity"
    norm = {"norm.weight": torch.randn(n_out), "norm.bias": torch.randn(n_out)}
    add_pooling(checkpoint).add("Dense", "2_Dense", config, weights)
    checkpoint.add("Dropout", "3_Dropout", {"dropout": 0.5})
    checkpoint.add("LayerNorm", "4_LayerNorm", {"dimension": n_out}, norm)
    checkpoint.add("Normalize", "5_Normalize")

    assert_as_sentence_transformers(checkpoint)


def test_the_transformer_in_a_folder_and_the_length_that_it_says(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "model")
    checkpoint.modules.clear()
    folder = tmp_path / "model" / "0_Transformer"
    folder.mkdir()
    for path in list((tmp_path / "model").glob("*.*")):
        path.rename(folder / path.name)
    checkpoint.add("Transformer", "0_Transformer")
    checkpoint.write("0_Transformer/sentence_bert_config.json", {"max_seq_length": 6})
    add_pooling(checkpoint)

    assert checkpoint.load().tokenizer.max_length == 6
    assert_as_sentence_transformers(checkpoint)


def test_texts_are_put_into_lower_case_where_the_transformer_says_so(
    checkpoint: Checkpoint,
) -> None:
    checkpoint.write("sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": True})
    add_pooling(checkpoint)
    encoder = checkpoint.load()

    upper, lower = embed(encoder, "THE Cat", "the cat")

    np.testing.assert_array_equal(upper, lower)


def test_prompts_by_their_names(checkpoint: Checkpoint) -> None:
    add_pooling(checkpoint)
    settings = {"prompts": {"query": PROMPT, "document": ""}, "default_prompt_name": "query"}
    checkpoint.write("config_sentence_transformers.json", {**settings, "similarity_fn_name": "dot"})

    pipeline = checkpoint.load().pipeline

    assert pipeline is not None
    assert (pipeline.prompt(), pipeline.prompt("document")) == (PROMPT, "")
    assert pipeline.similarity == "dot"
    with pytest.raises(InvalidInput, match="prompt_name: expected query, document, got 'other'"):
        pipeline.prompt("other")


def test_without_modules_the_mean_is_normalized(checkpoint: Checkpoint) -> None:
    (checkpoint.directory / "modules.json").unlink()
    encoder = checkpoint.load()
    assert encoder.pipeline is not None
    assert encoder.pipeline.is_normalized
    assert encoder.pipeline.prompt() == ""
    model = BertModel.from_pretrained(checkpoint.directory).eval()
    ids = torch.tensor(encoder.tokenizer.tokenize_blocking(TEXTS[:1])[0].input_ids)[None]
    with torch.no_grad():
        mean = model(ids)[0][0].mean(0).numpy()

    (actual,) = embed(encoder, TEXTS[0])

    np.testing.assert_allclose(actual, mean / np.linalg.norm(mean), rtol=0, atol=1e-6)


def test_the_pooling_that_is_asked_for_wins(checkpoint: Checkpoint) -> None:
    add_pooling(checkpoint)
    expected = embed(checkpoint.load(pooling="cls"), TEXTS[0])

    checkpoint.write("1_Pooling/config.json", {"pooling_mode": "cls"})

    np.testing.assert_array_equal(embed(checkpoint.load(), TEXTS[0]), expected)
    with pytest.raises(ModelLoadError, match="pooling: expected one of cls, max, .*, got 'sum'"):
        checkpoint.load(pooling="sum")


def test_a_text_that_is_cut_within_a_prompt_that_does_not_count_is_pooled(
    checkpoint: Checkpoint,
) -> None:
    checkpoint.add("Pooling", "1_Pooling", {"pooling_mode": "mean", "include_prompt": False})

    (embedding,) = embed(checkpoint.load(), "a cat", prompt="the dog " * 50)

    assert np.isfinite(embedding).all()


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("WordEmbeddings", {}, "expected modules of the types Transformer, .*, got WordEmbeddings"),
        ("Transformer", {}, "expected one Transformer, got several"),
        ("Pooling", {}, "expected Pooling once, before other modules"),
        ("Dense", {"in_features": 32}, "9_x: .*out_features"),
        ("Dense", {"in_features": 8, "out_features": 4}, "9_x: .*size mismatch"),
        (
            "Dense",
            {"in_features": 32, "out_features": 4, "activation_function": "os.system"},
            "activation_function: expected a module of torch.nn, got 'os.system'",
        ),
        (
            "Dense",
            {"in_features": 32, "out_features": 4, "activation_function": "torch.nn.init.ones_"},
            "activation_function: expected a module of torch.nn, got 'torch.nn.init.ones_'",
        ),
        (
            "Dense",
            {"in_features": 32, "out_features": 4, "module_input_name": "token_embeddings"},
            "module_input_name: expected sentence_embedding, got 'token_embeddings'",
        ),
        ("LayerNorm", {"dimension": 7}, "9_x: .*linear.weight|9_x: .*Missing key"),
        ("LayerNorm", {}, "9_x: .*dimension"),
    ],
)
def test_a_module_that_cannot_be_read_is_named(
    checkpoint: Checkpoint, kind: str, config: dict[str, Any], reason: str
) -> None:
    weights = {"linear.weight": torch.ones(4, SIZE), "linear.bias": torch.ones(4)}
    add_pooling(checkpoint).add(kind, "9_x", config, weights)

    with pytest.raises(ModelLoadError, match=reason) as refused:
        read_pipeline(open_checkpoint(checkpoint.directory, None, OPTIONS), OPTIONS)

    assert "\n" not in str(refused.value)


def test_modules_that_are_no_list_of_modules_are_refused(checkpoint: Checkpoint) -> None:
    opened = open_checkpoint(checkpoint.directory, None, OPTIONS)
    for content in (b"{", b"{}", b"[1]", b'[{"type": 1, "path": ""}]', b'[{"path": ""}]', b"[]"):
        (checkpoint.directory / "modules.json").write_bytes(content)
        with pytest.raises(ModelLoadError, match=r"modules\.json: expected a"):
            read_pipeline(opened, OPTIONS)


@pytest.mark.parametrize("mode", ["sum", ["mean", "sum"], [], 5])
def test_a_pooling_that_is_none_is_refused(checkpoint: Checkpoint, mode: Any) -> None:
    checkpoint.add("Pooling", "1_Pooling", {"pooling_mode": mode})

    with pytest.raises(ModelLoadError, match="pooling_mode: expected one or more of cls, max"):
        read_pipeline(open_checkpoint(checkpoint.directory, None, OPTIONS), OPTIONS)


def test_a_part_of_an_embedding_has_the_length_1_again() -> None:
    embedding = np.array([3, 4, 12], np.float32)

    np.testing.assert_allclose(cut(embedding, 2), [0.6, 0.8])
    np.testing.assert_allclose(cut(embedding, 3), embedding / 13)
    assert normalized(np.zeros(2, np.float32)).tolist() == [0, 0]
    for dimensions in (0, 4, -1):
        with pytest.raises(InvalidInput, match=f"dimensions: expected 1 to 3, got {dimensions}"):
            cut(embedding, dimensions)


def test_an_embedding_is_cut_to_what_its_model_was_trained_for(checkpoint: Checkpoint) -> None:
    add_pooling(checkpoint)
    config = orjson.loads((checkpoint.directory / "config.json").read_bytes())
    checkpoint.write("config.json", {**config, "matryoshka_dimensions": [16, 8]})
    pipeline = checkpoint.load().pipeline
    assert pipeline is not None
    embedding = np.ones(32, np.float32)

    assert pipeline.dimensions == (8, 16)
    assert len(cut(embedding, 8, pipeline.dimensions)) == 8
    assert len(cut(embedding, 32, pipeline.dimensions)) == 32
    with pytest.raises(InvalidInput, match="expected 8, 16, which the model was trained for"):
        cut(embedding, 9, pipeline.dimensions)
