"""Vectors of embeddings, cut to fewer dimensions, and in the encodings of the API."""

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from kserve.protocol.rest.openai.errors import invalid_request

# Below this a vector is taken to be zero, which has no direction; as in PyTorch's `normalize`.
_MIN_LENGTH: Final = 1e-12


def truncated(
    vectors: NDArray[np.float32], dimensions: int | None, *, normalize: bool = True
) -> NDArray[np.float32]:
    """Keep the first dimensions of vectors, as models are trained for that allow it (Matryoshka).

    Args:
        vectors: Shape (n_inputs, n_dimensions).
        dimensions: How many to keep; None keeps all, and the vectors as they are.
        normalize: Give the shorter vectors the length 1, as OpenAI does.

    Raises:
        OpenAIError: There are not as many.
    """
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    if not 1 <= dimensions <= vectors.shape[1]:
        raise invalid_request(
            f"'dimensions': expected 1 to {vectors.shape[1]}, got {dimensions}", "dimensions"
        )
    kept = vectors[:, :dimensions]
    if not normalize:
        return kept
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    normalized: NDArray[np.float32] = kept / np.maximum(lengths, np.float32(_MIN_LENGTH))
    return normalized


def encodable(vector: Any, encoding_format: Literal["float", "base64"]) -> Any:
    """Give what the types of the API carry for one vector or matrix.

    Args:
        vector: An array of numbers; anything else is given back, as it is in its encoding already.
        encoding_format: Numbers, or base64 of their bytes.

    Returns:
        A float32 array, or its bytes, little-endian, which are written as base64.
    """
    if not isinstance(vector, np.ndarray):
        return vector
    vector = np.ascontiguousarray(vector, dtype="<f4")
    return vector if encoding_format == "float" else vector.data
