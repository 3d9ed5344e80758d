"""A real model of sentence embeddings: the same vectors as sentence-transformers gives."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.packaged_models import MINILM, fetch

from hfserver.encoder.load import Encoder, Output, load_encoder
from hfserver.loading import LoadOptions, open_checkpoint

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    # sentence-transformers warns of what it changes in its own interfaces.
    pytest.mark.filterwarnings("ignore"),
]

OPTIONS = LoadOptions(device="cpu")
TEXTS = [
    "",
    "A man is eating food.",
    "Not all of it is English: Straße, naïve, 日本語 and 🙂.",
    "A cheetah is running behind its prey. " * 3,
    # Beyond the 256 tokens that the model reads.
    "The girl is carrying a baby and a monkey is playing drums. " * 60,
    *(f"Sentence number {number} of {'many ' * (number % 40)}." for number in range(80)),
]


@pytest.fixture(scope="module")
def directory() -> Path:
    return fetch(MINILM)


@pytest.fixture(scope="module")
def encoder(directory: Path) -> Encoder:
    checkpoint = open_checkpoint(directory, None, OPTIONS)
    return load_encoder("minilm", Output.EMBEDDING, checkpoint, OPTIONS)


async def embed(encoder: Encoder, texts: list[str]) -> np.ndarray:
    return np.stack(await encoder.engine.run(await encoder.tokenizer.tokenize(texts)))


def test_it_is_packed_and_reads_what_its_files_say(encoder: Encoder) -> None:
    assert encoder.execution == "packed"
    assert encoder.tokenizer.max_length == 256
    assert encoder.pipeline is not None
    assert encoder.pipeline.is_normalized
    assert encoder.pipeline.pooling.modes == ("mean",)


def test_embeddings_are_those_of_sentence_transformers(directory: Path, encoder: Encoder) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    oracle = sentence_transformers.SentenceTransformer(str(directory), device="cpu")
    expected = np.asarray(oracle.encode(TEXTS))

    actual = asyncio.run(embed(encoder, TEXTS))

    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_embeddings_are_the_same_whatever_runs_beside_them(encoder: Encoder) -> None:
    alone = asyncio.run(embed(encoder, TEXTS[1:4]))

    async def together() -> list[Any]:
        others = [embed(encoder, TEXTS[start::3]) for start in range(3)]
        return list(await asyncio.gather(embed(encoder, TEXTS[1:4]), *others))

    np.testing.assert_allclose(asyncio.run(together())[0], alone, rtol=0, atol=1e-6)


def test_the_loop_is_free_while_the_model_computes(encoder: Encoder) -> None:
    """Hold the model in its forward, and see other work of the loop come to its end first."""
    in_forward, go_on = threading.Event(), threading.Event()
    executor: Any = encoder.engine._executor
    run = executor.run

    def held(texts: Any) -> Any:
        in_forward.set()
        assert go_on.wait(60)
        return run(texts)

    async def work() -> None:
        task = asyncio.create_task(embed(encoder, TEXTS))
        await asyncio.get_running_loop().run_in_executor(None, in_forward.wait, 60)
        # Texts of the next request are read meanwhile.
        assert len(await encoder.tokenizer.tokenize(TEXTS)) == len(TEXTS)
        assert not task.done()
        go_on.set()
        await task

    executor.run = held
    try:
        asyncio.run(work())
    finally:
        executor.run = run
