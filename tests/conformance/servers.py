"""The servers that every protocol row is run against: one entry of `SERVERS` each.

An entry says how to start a server and what it answers to one good request of each protocol; the
rows of the suite are made from these.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kserve.testing import Response, ServerProcess

Json = dict[str, Any]

_HERE = Path(__file__).parent
_EXAMPLES = _HERE.parents[1] / "examples"


@dataclass(frozen=True, kw_only=True)
class OpenAI:
    """What a server answers over OpenAI's routes.

    Attributes:
        requests: A request that succeeds, without `model`, by the name of the API, such as
            `embeddings`; the server answers that it does not support any other one.
        answers: The answer to each: of objects the fields that matter, of lists all items.
        tolerance: By how much numbers of the answers may differ, relatively and absolutely.
        tokens: Token ids for which there is the same vector as for the first `input` of the
            embeddings; None without them.
        n_dimensions: How many dimensions vectors may be cut to; None where they may not.
        texts: What the streamed answer is altogether, by the API that streams.
    """

    requests: Mapping[str, Json]
    answers: Mapping[str, Json]
    tolerance: float = 0.0
    tokens: list[int] | None = None
    n_dimensions: int | None = None
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server of the table.

    Attributes:
        name: What the tests' ids call it.
        start: Gives what starts the process, in an empty folder of its own; further arguments are
            flags.
        model_name: The model that it serves, and no other.
        v1_request: A request that succeeds.
        v1_response: The whole answer to it, in the order of its keys.
        v2_request: A request that succeeds: one input, several rows, no `id`.
        v2_outputs: The outputs of the answer to it.
        metadata: The whole metadata of the model.
        batches: Whether rows of requests that wait together run together.
        v1_status: What `GET /v1/models/MODEL` says beside its name and `ready`, as JSON.
        v1_explanation: The answer to `v1_request` on the explain route; None if the model cannot
            explain.
        imports: What has to be installed for it; its rows are skipped otherwise.
        openai: What it answers over OpenAI's routes; None if it has none.
        generation: A request of `generate` that succeeds, without `id`, and the text of the answer;
            None if the model writes no text.
    """

    name: str
    start: Callable[..., AbstractContextManager[ServerProcess]]
    model_name: str
    v1_request: Json
    v1_response: Json
    v2_request: Json
    v2_outputs: list[Json]
    metadata: Json
    batches: bool = False
    v1_status: bytes = b""
    v1_explanation: Json | None = None
    imports: tuple[str, ...] = ()
    openai: OpenAI | None = None
    generation: tuple[Json, str] | None = None

    @property
    def v1(self) -> str:
        """The path of the model in V1."""
        return f"/v1/models/{self.model_name}"

    @property
    def v2(self) -> str:
        """The path of the model in V2."""
        return f"/v2/models/{self.model_name}"

    def v2_response(self, request_id: str) -> Json:
        """Give the whole answer to `v2_request`, in the order of its keys."""
        return {
            "model_name": self.model_name,
            "model_version": None,
            "id": request_id,
            "parameters": None,
            "outputs": self.v2_outputs,
        }


@dataclass(frozen=True)
class RunningServer:
    """A started server and its entry."""

    entry: Server
    process: ServerProcess

    @property
    def port(self) -> int:
        """The REST port."""
        return self.process.port

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Response:
        """Send one request over a new connection; see `kserve.testing.request`."""
        return self.process.request(method, path, body, headers, **options)


@contextmanager
def _proxy_of_letters(folder: Path, *flags: str) -> Iterator[ServerProcess]:
    with ServerProcess(str(_HERE / "openai_server.py")) as server:
        url = f"http://127.0.0.1:{server.port}"
        named = ("--model_name", "letters", "--upstream_url", url)
        with ServerProcess("kserve", *named, *flags) as proxy:
            # A probe, after which it knows what the server says of its model.
            proxy.request("GET", "/v2/health/ready")
            yield proxy


def _script(path: Path) -> Callable[..., ServerProcess]:
    return lambda folder, *flags: ServerProcess(str(path), *flags)


def _python_model(example: str) -> Callable[..., ServerProcess]:
    def start(folder: Path, *flags: str) -> ServerProcess:
        arguments = ("--model_dir", str(_EXAMPLES / example), "--model_name", example, *flags)
        return ServerProcess("pythonserver", *arguments)

    return start


def _sklearn_iris(folder: Path, *flags: str) -> ServerProcess:
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.svm import SVC

    features, species = load_iris(return_X_y=True, as_frame=True)
    joblib.dump(SVC(gamma=1.0).fit(features, species), folder / "model.joblib")
    arguments = ("--model_dir", str(folder), "--model_name", "iris", *flags)
    return ServerProcess("sklearnserver", *arguments)


def _onnx_iris(folder: Path, *flags: str) -> ServerProcess:
    """Serve the nearest of three flowers: the largest of 2 * x.c - c.c is that of the nearest c."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    flowers = np.array(_IRIS_ROWS, np.float32)
    constants = {"c": 2 * flowers.T, "cc": (flowers * flowers).sum(axis=1)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "c"], ["xc"]),
            helper.make_node("Sub", ["xc", "cc"], ["closeness"]),
            helper.make_node("ArgMax", ["closeness"], ["species"], axis=1, keepdims=0),
        ],
        "nearest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("species", TensorProto.INT64, ["batch"])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    arguments = ("--model_dir", str(folder), "--model_name", "iris", *flags)
    return ServerProcess("onnxserver", *arguments)


def _bits() -> tuple[Any, Any]:
    """Give two features of 0 or 1, and sums that one tree tells apart: all values are exact."""
    import numpy as np

    features = np.array([[a, b] for a in (0, 1) for b in (0, 1)] * 4, dtype=np.float32)
    return features, features @ [1.0, 2.0]


def _xgb_sums(folder: Path, *flags: str) -> ServerProcess:
    import xgboost

    data = xgboost.DMatrix(*_bits(), feature_names=["one", "two"])
    parameters = {"base_score": 0.0, "eta": 1.0, "lambda": 0.0, "max_depth": 2, "nthread": 1}
    xgboost.train(parameters, data, 1).save_model(folder / "model.ubj")
    arguments = ("--model_dir", str(folder), "--model_name", "sums", *flags)
    return ServerProcess("xgbserver", *arguments)


def _lgb_sums(folder: Path, *flags: str) -> ServerProcess:
    import lightgbm

    parameters = dict.fromkeys(("min_data_in_leaf", "min_data_in_bin", "num_threads"), 1)
    parameters |= {"min_sum_hessian_in_leaf": 0, "learning_rate": 1, "verbosity": -1}
    data = lightgbm.Dataset(*_bits(), feature_name=["one", "two"])
    booster = lightgbm.train({**parameters, "boost_from_average": False}, data, 1)
    for leaf in range(4):
        # It divides by a little more than the number of rows.
        booster.set_leaf_output(0, leaf, round(booster.get_leaf_output(0, leaf)))
    booster.save_model(folder / "model.txt")
    arguments = ("--model_dir", str(folder), "--model_name", "sums", *flags)
    return ServerProcess("lgbserver", *arguments)


def _hf_words(name: str, *, classifies: bool) -> Callable[..., ServerProcess]:
    """Serve a BERT of no layers and two words, whose embeddings are exact.

    Each has four numbers of 1 and -1: their mean is 0 and their variance 1, so a normalization
    leaves them as they are.
    """

    def start(folder: Path, *flags: str) -> ServerProcess:
        import numpy as np
        import orjson
        from safetensors.numpy import save_file
        from tokenizers import Tokenizer, models, pre_tokenizers

        ids = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}
        words = np.array([[0] * 4, [1, -1, -1, 1], [1, 1, -1, -1], [1, -1, 1, -1]], np.float32)
        one, zero, unit = np.ones(4, np.float32), np.zeros(4, np.float32), np.eye(4)
        weights = {
            "embeddings.word_embeddings.weight": words,
            "embeddings.position_embeddings.weight": np.zeros((16, 4), np.float32),
            "embeddings.token_type_embeddings.weight": np.zeros((2, 4), np.float32),
            "embeddings.LayerNorm.weight": one,
            "embeddings.LayerNorm.bias": zero,
        }
        config = {
            "model_type": "bert",
            "architectures": ["BertForSequenceClassification" if classifies else "BertModel"],
            **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 4),
            "num_hidden_layers": 0,
            "num_attention_heads": 1,
            "max_position_embeddings": 16,
            "layer_norm_eps": 0.0,
            "pad_token_id": 0,
            "dtype": "float32",
            "id2label": {"0": "negative", "1": "positive"},
        }
        if classifies:
            weights = {f"bert.{key}": value for key, value in weights.items()}
            weights |= {
                "bert.pooler.dense.weight": unit.astype(np.float32),
                "bert.pooler.dense.bias": zero,
                "classifier.weight": np.array([[0, -1, 1, 0], [0, 1, -1, 0]], np.float32),
                "classifier.bias": np.zeros(2, np.float32),
            }
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_bytes(orjson.dumps(config))
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_bytes(
            orjson.dumps(
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "pad_token": "[PAD]",
                    "unk_token": "[UNK]",
                    "model_max_length": 16,
                }
            )
        )
        arguments = ("--model_dir", str(folder), "--model_name", name, *flags)
        return ServerProcess("hfserver", *arguments)

    return start


def _hf_alphabet(folder: Path, *flags: str) -> ServerProcess:
    """Serve a Llama that goes on with the alphabet, to "d", however tokens are drawn.

    Its layer does nothing, and an embedding has a place of its own for its letter, which the head
    makes that of the next one.
    """
    import numpy as np
    import orjson
    from safetensors.numpy import save_file
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    ids = {"[UNK]": 0, "a": 1, "b": 2, "c": 3, "d": 4, "</s>": 5}
    n_hidden = 8
    unit = np.eye(len(ids), n_hidden, dtype=np.float32)
    layer = "model.layers.0."
    square = np.zeros((n_hidden, n_hidden), np.float32)
    one = np.ones(n_hidden, np.float32)
    weights = {
        "model.embed_tokens.weight": unit,
        "model.norm.weight": one,
        "lm_head.weight": 100 * np.roll(unit, 1, axis=0),
        **{f"{layer}self_attn.{each}_proj.weight": square for each in "qkvo"},
        **{f"{layer}mlp.{each}_proj.weight": square for each in ("gate", "up", "down")},
        **{f"{layer}{each}_layernorm.weight": one for each in ("input", "post_attention")},
    }
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **dict.fromkeys(("hidden_size", "intermediate_size"), n_hidden),
        **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 1),
        "vocab_size": len(ids),
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": ids["</s>"],
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes(orjson.dumps(config))
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes(
        orjson.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "unk_token": "[UNK]",
                "eos_token": "</s>",
                "chat_template": "{{ messages[-1].content }}",
            }
        )
    )
    arguments = ("--model_dir", str(folder), "--model_name", "alphabet", *flags)
    return ServerProcess("hfserver", *arguments, "--kv_cache_bytes", str(1 << 24))


def _tf_iris(folder: Path, *flags: str) -> ServerProcess:
    """Serve the nearest of three flowers, as above."""
    import numpy as np
    import tensorflow as tf

    flowers = np.array(_IRIS_ROWS, np.float32)
    squares = (flowers * flowers).sum(axis=1)

    def nearest(x: Any) -> dict[str, Any]:
        return {"species": tf.argmax(2 * x @ flowers.T - squares, axis=1)}

    module = tf.Module()
    module.nearest = tf.function(
        nearest, input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")]
    )
    tf.saved_model.save(module, str(folder), {"serving_default": module.nearest})
    arguments = ("--model_dir", str(folder), "--model_name", "iris", *flags)
    return ServerProcess("tfserver", *arguments)


# Rows 0, 50 and 100 of the data that scikit-learn carries: one of each class.
_IRIS_ROWS = [[5.1, 3.5, 1.4, 0.2], [7.0, 3.2, 4.7, 1.4], [6.3, 3.3, 6.0, 2.5]]
_IRIS_FEATURES = (
    "sepal length (cm)",
    "sepal width (cm)",
    "petal length (cm)",
    "petal width (cm)",
)
_TEXTS = ["The cat sat on the mat.", "Reproducibility necessitates methodological rigour."]
_SCORES = [116.1, -220.2]
_LETTERS = ["Ada Lovelace never saw Ghent University.", "The Hague is no New York."]
_REDACTED = ["[PERSON] never saw [ORG].", "[CITY] is no [CITY]."]
_FLOWERS = [[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5], [50.0, 30.0, 10.0, 2.0]]
_NAMES = ["setosa", "virginica", "unknown"]
_BITS = [[0, 1], [1, 1], [1, 0]]
_SUMS = [2.0, 3.0, 1.0]
_SHARES = [
    {"one": -0.5, "two": 1.0, "bias": 1.5},
    {"one": 0.5, "two": 1.0, "bias": 1.5},
    {"one": 0.5, "two": -1.0, "bias": 1.5},
]

_TF_SIGNATURE: Json = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "species", "datatype": "INT64", "shape": [-1]}],
}
_REVIEWS = ["good", "bad", "good"]
_VECTORS = [[0.5, 0.5, -0.5, -0.5], [0.5, -0.5, 0.5, -0.5], [0.5, 0.5, -0.5, -0.5]]
# Of twice the tangent of 1 against its opposite.
_SURE = 0.954626
_WORDS = ["abba", "cab", "dad"]
_BEGINNINGS = ["a", "ab", "c"]
_ENDS = ["bcd", "cd", "d"]
_COUNTS = [[2.0, 2.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 2.0]]

SERVERS = (
    Server(
        name="echo",
        start=_script(_HERE / "echo_server.py"),
        model_name="echo",
        v1_request={"instances": [[1, 2], [3, 4]]},
        v1_response={"predictions": [[1, 2], [3, 4]]},
        v2_request={
            "inputs": [
                {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2.5], [3, 4]]}
            ]
        },
        v2_outputs=[
            {
                "name": "x",
                "shape": [2, 2],
                "datatype": "FP32",
                "parameters": None,
                "data": [1.0, 2.5, 3.0, 4.0],
            }
        ],
        metadata={
            "name": "echo",
            "versions": None,
            "platform": "echo",
            "inputs": [],
            "outputs": [],
        },
    ),
    Server(
        name="letters",
        start=_script(_HERE / "openai_server.py"),
        model_name="letters",
        v1_request={"instances": _WORDS},
        v1_response={"predictions": _COUNTS},
        v2_request={
            "inputs": [{"name": "text", "shape": [3], "datatype": "BYTES", "data": _WORDS}]
        },
        v2_outputs=[
            {
                "name": "counts",
                "shape": [3, 4],
                "datatype": "FP32",
                "parameters": None,
                "data": [count for counts in _COUNTS for count in counts],
            }
        ],
        metadata={
            "name": "letters",
            "versions": None,
            "platform": "letters",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "counts", "datatype": "FP32", "shape": [-1, 4]}],
        },
        generation=({"text_input": "abc"}, "cba"),
        openai=OpenAI(
            requests={
                "completions": {"prompt": ["abc", "d"]},
                "chat/completions": {"messages": [{"role": "user", "content": "abc"}]},
                "embeddings": {"input": ["abba", "cab"]},
                "rerank": {"query": "a", "documents": ["b", "aa", "a"]},
                "score": {"text_1": "ab", "text_2": ["ab", "c"]},
                "classify": {"input": "abbb"},
                "pooling": {"input": "abba"},
                "tokenize": {"prompt": "ab"},
                "detokenize": {"tokens": [97, 98]},
            },
            answers={
                "completions": {
                    "object": "text_completion",
                    "choices": [
                        {"index": 0, "text": "cba", "finish_reason": "stop", "logprobs": None},
                        {"index": 1, "text": "d", "finish_reason": "stop", "logprobs": None},
                    ],
                    "usage": {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8},
                },
                "chat/completions": {
                    "object": "chat.completion",
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "cba"},
                            "finish_reason": "stop",
                        }
                    ],
                },
                "embeddings": {
                    "object": "list",
                    "data": [
                        {"object": "embedding", "index": 0, "embedding": [2, 2, 0, 0]},
                        {"object": "embedding", "index": 1, "embedding": [1, 1, 1, 0]},
                    ],
                    "usage": {"prompt_tokens": 7, "total_tokens": 7},
                },
                "rerank": {
                    "results": [
                        {"index": 1, "relevance_score": 2, "document": {"text": "aa"}},
                        {"index": 2, "relevance_score": 1, "document": {"text": "a"}},
                        {"index": 0, "relevance_score": 0, "document": {"text": "b"}},
                    ]
                },
                "score": {
                    "data": [
                        {"object": "score", "index": 0, "score": 2},
                        {"object": "score", "index": 1, "score": 0},
                    ]
                },
                "classify": {
                    "data": [
                        {"index": 0, "label": "b", "probs": [0.25, 0.75, 0, 0], "num_classes": 4}
                    ]
                },
                "pooling": {"data": [{"object": "pooling", "index": 0, "data": [2, 2, 0, 0]}]},
                "tokenize": {"tokens": [97, 98], "count": 2, "max_model_len": 100},
                "detokenize": {"prompt": "ab"},
            },
            tokens=[97, 98, 98, 97],
            n_dimensions=2,
            texts={"completions": "cba", "chat/completions": "cba"},
        ),
    ),
    Server(
        name="hfserver",
        start=_hf_words("reviews", classifies=True),
        imports=("hfserver",),
        model_name="reviews",
        v1_request={"instances": _REVIEWS},
        v1_response={"predictions": [1, 0, 1]},
        v2_request={
            "inputs": [{"name": "text", "shape": [3], "datatype": "BYTES", "data": _REVIEWS}]
        },
        v2_outputs=[
            {
                "name": "output-0",
                "shape": [3],
                "datatype": "INT64",
                "parameters": None,
                "data": [1, 0, 1],
            }
        ],
        metadata={
            "name": "reviews",
            "versions": None,
            "platform": "huggingface",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "output-0", "datatype": "INT64", "shape": [-1]}],
        },
        openai=OpenAI(
            requests={
                "classify": {"input": ["good", "bad"]},
                "pooling": {"input": "bad"},
                "tokenize": {"prompt": "good bad"},
                "detokenize": {"tokens": [2, 3]},
            },
            answers={
                "classify": {
                    "data": [
                        {
                            "index": 0,
                            "label": "positive",
                            "probs": [1 - _SURE, _SURE],
                            "labels": ["negative", "positive"],
                            "num_classes": 2,
                        },
                        {"index": 1, "label": "negative", "probs": [_SURE, 1 - _SURE]},
                    ],
                    "usage": {"prompt_tokens": 2, "total_tokens": 2},
                },
                "pooling": {
                    "data": [{"object": "pooling", "index": 0, "data": [_SURE, 1 - _SURE]}]
                },
                "tokenize": {"tokens": [2, 3], "count": 2, "max_model_len": 16},
                "detokenize": {"prompt": "good bad"},
            },
            tolerance=1e-5,
        ),
    ),
    Server(
        name="hfserver-embeddings",
        start=_hf_words("embeddings", classifies=False),
        imports=("hfserver",),
        model_name="embeddings",
        v1_request={"instances": _REVIEWS},
        v1_response={"predictions": _VECTORS},
        v2_request={
            "inputs": [{"name": "text", "shape": [3], "datatype": "BYTES", "data": _REVIEWS}]
        },
        v2_outputs=[
            {
                "name": "output-0",
                "shape": [3, 4],
                "datatype": "FP64",
                "parameters": None,
                "data": [number for vector in _VECTORS for number in vector],
            }
        ],
        metadata={
            "name": "embeddings",
            "versions": None,
            "platform": "huggingface",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "output-0", "datatype": "FP64", "shape": [-1, 4]}],
        },
        openai=OpenAI(
            requests={
                "embeddings": {"input": ["good", "bad"]},
                "rerank": {"query": "good", "documents": ["bad", "good"]},
                "score": {"text_1": "good", "text_2": ["bad", "good"]},
                "pooling": {"input": "bad"},
                "tokenize": {"prompt": "good bad"},
                "detokenize": {"tokens": [2, 3]},
            },
            answers={
                "embeddings": {
                    "object": "list",
                    "data": [
                        {"object": "embedding", "index": 0, "embedding": _VECTORS[0]},
                        {"object": "embedding", "index": 1, "embedding": _VECTORS[1]},
                    ],
                    "usage": {"prompt_tokens": 2, "total_tokens": 2},
                },
                "rerank": {
                    "results": [
                        {"index": 1, "relevance_score": 1, "document": {"text": "good"}},
                        {"index": 0, "relevance_score": 0, "document": {"text": "bad"}},
                    ]
                },
                "score": {
                    "data": [
                        {"object": "score", "index": 0, "score": 0},
                        {"object": "score", "index": 1, "score": 1},
                    ]
                },
                "pooling": {"data": [{"object": "pooling", "index": 0, "data": _VECTORS[1]}]},
                "tokenize": {"tokens": [2, 3], "count": 2, "max_model_len": 16},
                "detokenize": {"prompt": "good bad"},
            },
            tokens=[2],
            n_dimensions=2,
        ),
    ),
    Server(
        name="hfserver-texts",
        start=_hf_alphabet,
        imports=("hfserver",),
        model_name="alphabet",
        v1_request={"instances": _BEGINNINGS},
        v1_response={"predictions": _ENDS},
        v2_request={
            "inputs": [{"name": "text", "shape": [3], "datatype": "BYTES", "data": _BEGINNINGS}]
        },
        v2_outputs=[
            {
                "name": "output-0",
                "shape": [3],
                "datatype": "BYTES",
                "parameters": None,
                "data": _ENDS,
            }
        ],
        metadata={
            "name": "alphabet",
            "versions": None,
            "platform": "huggingface",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "output-0", "datatype": "BYTES", "shape": [-1]}],
        },
        generation=({"text_input": "ab", "parameters": {"max_tokens": 5}}, "cd"),
        openai=OpenAI(
            requests={
                "completions": {"prompt": "ab"},
                "chat/completions": {"messages": [{"role": "user", "content": "ab"}]},
                "tokenize": {"prompt": "ab"},
                "detokenize": {"tokens": [1, 2]},
            },
            answers={
                "completions": {
                    "object": "text_completion",
                    "choices": [
                        {"index": 0, "text": "cd", "finish_reason": "stop", "logprobs": None}
                    ],
                    "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
                },
                "chat/completions": {
                    "object": "chat.completion",
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "cd"},
                            "finish_reason": "stop",
                        }
                    ],
                },
                "tokenize": {"tokens": [1, 2], "count": 2, "max_model_len": 64},
                "detokenize": {"prompt": "ab"},
            },
            texts={"completions": "cd", "chat/completions": "cd"},
        ),
    ),
    Server(
        name="custom-model",
        start=_script(_EXAMPLES / "custom-model" / "server.py"),
        model_name="reading-ease",
        v1_request={"instances": _TEXTS},
        v1_response={"predictions": _SCORES},
        v2_request={
            "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": _TEXTS}]
        },
        v2_outputs=[
            {
                "name": "output-0",
                "shape": [2],
                "datatype": "FP64",
                "parameters": None,
                "data": _SCORES,
            }
        ],
        metadata={
            "name": "reading-ease",
            "versions": None,
            "platform": "",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "output-0", "datatype": "FP64", "shape": [-1]}],
        },
    ),
    Server(
        name="pythonserver",
        start=_python_model("python-novelty"),
        imports=("pythonserver", "sklearn"),
        model_name="python-novelty",
        v1_request={"instances": _FLOWERS},
        v1_response={"predictions": _NAMES},
        v2_request={
            "inputs": [{"name": "measures", "shape": [3, 4], "datatype": "FP64", "data": _FLOWERS}]
        },
        v2_outputs=[
            {
                "name": "output-0",
                "shape": [3],
                "datatype": "BYTES",
                "parameters": None,
                "data": _NAMES,
            }
        ],
        metadata={
            "name": "python-novelty",
            "versions": None,
            "platform": "python",
            "inputs": [{"name": "measures", "datatype": "FP64", "shape": [-1, 4]}],
            "outputs": [{"name": "output-0", "datatype": "BYTES", "shape": [-1]}],
        },
    ),
    Server(
        name="pythonserver-functions",
        start=_python_model("python-text"),
        imports=("pythonserver",),
        model_name="python-text",
        v1_request={"instances": _LETTERS},
        v1_response={"predictions": _REDACTED},
        v2_request={
            "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": _LETTERS}]
        },
        v2_outputs=[
            {
                "name": "output-0",
                "shape": [2],
                "datatype": "BYTES",
                "parameters": None,
                "data": _REDACTED,
            }
        ],
        metadata={
            "name": "python-text",
            "versions": None,
            "platform": "python",
            "inputs": [],
            "outputs": [],
        },
    ),
    Server(
        name="sklearnserver",
        start=_sklearn_iris,
        batches=True,
        imports=("sklearn", "sklearnserver"),
        model_name="iris",
        v1_request={"instances": _IRIS_ROWS},
        v1_response={"predictions": [0, 1, 2]},
        v2_request={
            "inputs": [{"name": "x", "shape": [3, 4], "datatype": "FP64", "data": _IRIS_ROWS}]
        },
        v2_outputs=[
            {
                "name": "output-0",
                "shape": [3],
                "datatype": "INT64",
                "parameters": None,
                "data": [0, 1, 2],
            }
        ],
        metadata={
            "name": "iris",
            "versions": None,
            "platform": "sklearn",
            "inputs": [
                {"name": name, "datatype": "FP64", "shape": [-1]} for name in _IRIS_FEATURES
            ],
            "outputs": [{"name": "output-0", "datatype": "INT64", "shape": [-1]}],
        },
    ),
    Server(
        name="onnxserver",
        start=_onnx_iris,
        batches=True,
        imports=("onnx", "onnxruntime", "onnxserver"),
        model_name="iris",
        v1_request={"instances": _IRIS_ROWS},
        v1_response={"predictions": [0, 1, 2]},
        v2_request={
            "inputs": [{"name": "x", "shape": [3, 4], "datatype": "FP32", "data": _IRIS_ROWS}]
        },
        v2_outputs=[
            {
                "name": "species",
                "shape": [3],
                "datatype": "INT64",
                "parameters": None,
                "data": [0, 1, 2],
            }
        ],
        metadata={
            "name": "iris",
            "versions": None,
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "species", "datatype": "INT64", "shape": [-1]}],
        },
    ),
    Server(
        name="tfserver",
        start=_tf_iris,
        batches=True,
        imports=("tensorflow", "tfserver"),
        model_name="iris",
        v1_request={"instances": _IRIS_ROWS},
        v1_response={"predictions": [0, 1, 2]},
        v1_status=b',"model_version_status":[{"version":"1","state":"AVAILABLE",'
        b'"status":{"error_code":"OK","error_message":""}}]',
        v2_request={
            "inputs": [{"name": "x", "shape": [3, 4], "datatype": "FP32", "data": _IRIS_ROWS}]
        },
        v2_outputs=[
            {
                "name": "species",
                "shape": [3],
                "datatype": "INT64",
                "parameters": None,
                "data": [0, 1, 2],
            }
        ],
        metadata={
            "name": "iris",
            "versions": ["1"],
            "platform": "tensorflow",
            **_TF_SIGNATURE,
            "signatures": {"serving_default": _TF_SIGNATURE},
        },
    ),
    Server(
        name="xgbserver",
        start=_xgb_sums,
        batches=True,
        imports=("xgbserver",),
        model_name="sums",
        v1_request={"instances": _BITS},
        v1_response={"predictions": _SUMS},
        v1_explanation={"explanations": _SHARES},
        v2_request={"inputs": [{"name": "x", "shape": [3, 2], "datatype": "FP32", "data": _BITS}]},
        v2_outputs=[
            {
                "name": "output-0",
                "shape": [3],
                "datatype": "FP32",
                "parameters": None,
                "data": _SUMS,
            }
        ],
        metadata={
            "name": "sums",
            "versions": None,
            "platform": "xgboost",
            "inputs": [
                {"name": name, "datatype": "FP32", "shape": [-1]} for name in ("one", "two")
            ],
            "outputs": [{"name": "output-0", "datatype": "FP32", "shape": [-1]}],
        },
    ),
    Server(
        name="lgbserver",
        start=_lgb_sums,
        batches=True,
        imports=("lgbserver",),
        model_name="sums",
        v1_request={"instances": _BITS},
        v1_response={"predictions": _SUMS},
        v1_explanation={"explanations": _SHARES},
        v2_request={"inputs": [{"name": "x", "shape": [3, 2], "datatype": "FP64", "data": _BITS}]},
        v2_outputs=[
            {
                "name": "output-0",
                "shape": [3],
                "datatype": "FP64",
                "parameters": None,
                "data": _SUMS,
            }
        ],
        metadata={
            "name": "sums",
            "versions": None,
            "platform": "lightgbm",
            "inputs": [
                {"name": name, "datatype": "FP64", "shape": [-1]} for name in ("one", "two")
            ],
            "outputs": [{"name": "output-0", "datatype": "FP64", "shape": [-1]}],
        },
    ),
)

# Passes OpenAI's requests on, so that clients see the server behind it, and has no other protocol.
PROXY = replace(
    next(each for each in SERVERS if each.name == "letters"), name="proxy", start=_proxy_of_letters
)
