"""The tensors of the V2 protocol.

A tensor keeps what it was given (a list, an array or raw bytes) and converts when it is asked.
Source: Open Inference Protocol v2, with its binary tensor data extension.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import math
from collections.abc import Sequence
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from kserve.errors import InferenceError, InferenceServerError, InvalidInput
from kserve.protocol.codec.arrays import (
    array_from_values,
    decode_texts,
    list_from_array,
    plain_array,
)
from kserve.protocol.codec.bytes_tensor import decode_bytes_tensor, encode_bytes_tensor
from kserve.protocol.codec.dtypes import NUMPY_DTYPES, from_np_dtype

Parameters = dict[str, Any]
RawData = bytes | bytearray | memoryview

BINARY_DATA_SIZE: Final = "binary_data_size"


class Tensor:
    """What `InferInput` and `InferOutput` have in common.

    Exactly one of `_data`, `_array` and `_raw_data` is set, or none of them. `_is_binary` says that
    the tensor came, or is to be sent, in binary form; its BYTES elements are then `bytes`.
    """

    __slots__ = (
        "_array",
        "_data",
        "_datatype",
        "_is_binary",
        "_name",
        "_parameters",
        "_raw_data",
        "_shape",
    )

    _kind = "tensor"

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        datatype: str,
        data: list[Any] | NDArray[Any] | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        self._name = name
        self._shape = shape
        self._datatype = datatype.upper()
        self._data = data
        self._parameters = parameters
        self._array: NDArray[Any] | None = None
        self._raw_data: RawData | None = None
        self._is_binary = False

    @classmethod
    def from_array(
        cls,
        name: str,
        shape: Sequence[int],
        datatype: str,
        array: NDArray[Any],
        parameters: Parameters | None = None,
    ) -> Self:
        """Make a tensor over `array`, without a copy, whose `data` reads as a list.

        Args:
            name: The tensor's name.
            shape: The tensor's shape.
            datatype: The tensor's datatype.
            array: As many elements as `shape` says; the list is nested as this array is.
            parameters: The tensor's parameters.
        """
        tensor = cls(name, shape, datatype, None, parameters)
        tensor._array = array
        return tensor

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self._name

    @property
    def datatype(self) -> str:
        """The protocol's name of the element type, upper case."""
        return self._datatype

    @property
    def shape(self) -> Sequence[int]:
        """The length of each axis."""
        return self._shape

    @shape.setter
    def shape(self, shape: Sequence[int]) -> None:
        self._shape = shape

    @property
    def parameters(self) -> Parameters | None:
        """The tensor's parameters, as given."""
        return self._parameters

    @parameters.setter
    def parameters(self, parameters: Parameters | None) -> None:
        self._parameters = parameters

    @property
    def label(self) -> str:
        """What error messages call the tensor, such as "input 'x'"."""
        return f"{self._kind} {self._name!r}"

    @property
    def has_data(self) -> bool:
        """Whether the tensor has content, in whatever form."""
        return not (self._data is None and self._array is None and self._raw_data is None)

    @property
    def is_binary(self) -> bool:
        """Whether the content came, or is to be sent, in binary form."""
        return self._is_binary or self._raw_data is not None

    @property
    def is_list(self) -> bool:
        """Whether the content is a list that was given, in no binary form."""
        return isinstance(self._data, list) and not self._is_binary

    @property
    def data(self) -> Any:
        """The list or array that was given; otherwise a list, made on first access.

        The list is flat after raw bytes and after `set_data_from_numpy`. From then on it is the
        tensor's content: a change in place counts. BYTES elements read as `str`, unless one of
        them is not UTF-8: then all are `bytes`. None without content.

        Raises:
            InvalidInput: The raw bytes disagree with the datatype.
        """
        if self._data is None and (self._array is not None or self._raw_data is not None):
            self._is_binary = self.is_binary
            self._data = self._list()
            self._array = self._raw_data = None
        return self._data

    @data.setter
    def data(self, data: list[Any] | NDArray[Any] | None) -> None:
        self._set_content(is_binary=False)
        self._data = data

    def as_numpy(self) -> NDArray[Any]:
        """Give the content as an array in `shape`.

        An array or aligned raw bytes are not copied; an array over raw bytes is read-only. BYTES
        elements are `bytes` if the tensor is in binary form, otherwise what they were given as.

        Raises:
            InvalidInput: The datatype is unknown, there is no data, a value does not fit the
                datatype, or the number of elements is not what `shape` says.
            InferenceError: Values of the array are masked, and it is none of floats.
        """
        array = self.as_view()
        # What follows a JSON part starts anywhere, and compiled code refuses unaligned arrays.
        return array if array.flags.aligned else array.copy()

    def as_view(self) -> NDArray[Any]:
        """Give the content as `as_numpy` does, but raw bytes where they lie, aligned or not.

        Raises:
            InvalidInput, InferenceError: As for `as_numpy`.
        """
        array = self._as_array()
        try:
            return _shaped(array, tuple(self._shape))
        except (TypeError, ValueError, OverflowError) as error:
            raise self._size_error(array.size) from error

    def as_string(self) -> list[str]:
        """Give the elements of a BYTES tensor as a flat list of `str`, row-major.

        Raises:
            InvalidInput: The datatype is not BYTES, or an element is not UTF-8.
        """
        if self._datatype != "BYTES":
            raise InvalidInput(f"{self.label}: expected datatype BYTES, got {self._datatype}")
        try:
            return decode_texts(self.as_numpy())
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{self.label}: expected UTF-8 text, got {error}") from error

    def set_data_from_numpy(self, input_tensor: NDArray[Any], binary_data: bool = True) -> None:
        """Take a copy of `input_tensor` as the content.

        Args:
            input_tensor: An array of exactly this tensor's shape and datatype.
            binary_data: Send it in binary form, and set the parameter `binary_data_size`;
                otherwise as a flat JSON list.

        Raises:
            InferenceError: No array, another datatype or shape, masked values that are no floats,
                or BYTES that are not UTF-8 and therefore cannot be JSON.
        """
        self._check_array(input_tensor)
        array = plain_array(input_tensor)
        if binary_data:
            raw = _raw_bytes(array, self._datatype)
            self._set_content(is_binary=True)
            self._raw_data = raw
            self._parameters = {**(self._parameters or {}), BINARY_DATA_SIZE: len(raw)}
        else:
            values = self._json_array(array)
            self._set_content(is_binary=False)
            self._array = values

    def set_raw_data(self, raw: RawData) -> None:
        """Take the binary form of the tensor as its content, without a copy.

        Raises:
            InvalidInput: `raw` does not have the size that shape and datatype say.
        """
        self._set_content(is_binary=True)
        if self._datatype == "BYTES":
            elements = self._array_from_raw(raw)
            if elements.size != math.prod(self._shape):
                raise self._size_error(elements.size)
            self._array = elements
            return
        expected = math.prod(self._shape) * _wire_dtype(self._datatype).itemsize
        if len(raw) != expected:
            raise InvalidInput(
                f"{self.label}: expected {expected} bytes of binary data for {self._datatype} of "
                f"shape {list(self._shape)}, got {len(raw)}"
            )
        self._raw_data = raw

    def to_entry(
        self, *, as_binary: bool, as_given: bool = False
    ) -> tuple[dict[str, Any], RawData | None]:
        """Give the tensor's entry in a REST document, and its binary form if it goes so.

        Args:
            as_binary: Leave the data out of the entry and put its size there.
            as_given: Let a list go out nested as it is; otherwise data is flat.

        Raises:
            InvalidInput: There is no data, it disagrees with shape or datatype, or it is FP16,
                which goes in binary form only.
            InferenceError: BYTES that are not UTF-8 are to go as JSON.
        """
        if not self.has_data:
            raise InvalidInput(f"{self.label}: 'data' is missing")
        entry: dict[str, Any] = {
            "name": self._name,
            "shape": list(self._shape),
            "datatype": self._datatype,
        }
        parameters = _without_binary_size(self._parameters or {})
        raw = self._binary() if as_binary else None
        if raw is not None:
            parameters[BINARY_DATA_SIZE] = len(raw)
        elif self._datatype == "FP16":
            raise InvalidInput(
                f"{self.label}: Sending FP16 data via JSON is not supported, "
                "use the binary data format"
            )
        if parameters:
            entry["parameters"] = parameters
        if raw is None:
            entry["data"] = self._json_list(as_given)
        return entry, raw

    def to_dict(self) -> dict[str, Any]:
        """Give name, shape, datatype, data (a list, or as given) and parameters."""
        return {
            "name": self._name,
            "shape": self._shape,
            "datatype": self._datatype,
            "data": self._list() if self._data is None else self._data,
            "parameters": self._parameters,
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return (
            self._name == other._name
            and self._datatype == other._datatype
            and tuple(self._shape) == tuple(other._shape)
            and _same(self._parameters or {}, other._parameters or {})
            and _same(_content(self), _content(other))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name={self._name!r}, shape={self._shape!r}, "
            f"datatype={self._datatype!r}, data={_content(self)!r}, "
            f"parameters={self._parameters!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        # A memoryview, as raw data may be, can be neither pickled nor deep-copied.
        raw = self._raw_data
        state = {slot: getattr(self, slot) for slot in Tensor.__slots__}
        return state | {"_raw_data": None if raw is None else bytes(raw)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for slot, value in state.items():
            setattr(self, slot, value)

    def _size_error(self, n_elements: int) -> InvalidInput:
        return InvalidInput(
            f"{self.label}: expected as many elements as shape {self._shape} holds, "
            f"got {n_elements}"
        )

    def _set_content(self, *, is_binary: bool) -> None:
        self._data = self._array = self._raw_data = None
        self._is_binary = is_binary
        if not is_binary and self._parameters and BINARY_DATA_SIZE in self._parameters:
            self._parameters = _without_binary_size(self._parameters)

    def _as_array(self) -> NDArray[Any]:
        # In any shape; the dtype is the datatype's.
        if self._raw_data is not None:
            return self._array_from_raw(self._raw_data)
        held = self._data if self._array is None else self._array
        if held is None:
            raise InvalidInput(f"{self.label}: 'data' is missing")
        try:
            array = array_from_values(held, self._datatype)
        except InvalidInput as error:
            raise InvalidInput(f"{self.label}: {error.reason}") from error
        if self._is_binary and self._array is None and self._datatype == "BYTES":
            return decode_bytes_tensor(encode_bytes_tensor(array)).reshape(array.shape)
        return array

    def _array_from_raw(self, raw: RawData) -> NDArray[Any]:
        try:
            if self._datatype == "BYTES":
                return decode_bytes_tensor(raw)
            return np.frombuffer(raw, dtype=_wire_dtype(self._datatype))
        except InvalidInput as error:
            raise InvalidInput(f"{self.label}: {error.reason}") from error
        except ValueError as error:
            size = NUMPY_DTYPES[self._datatype].itemsize
            raise InvalidInput(
                f"{self.label}: expected {size} bytes for each {self._datatype}, "
                f"got {len(raw)} in all"
            ) from error

    def _list(self) -> Any:
        return list_from_array(self._as_array()) if self.has_data else None

    def _check_array(self, array: Any) -> None:
        if not isinstance(array, np.ndarray):
            raise InferenceError(
                f"{self.label}: expected a numpy array, got {type(array).__name__}"
            )
        datatype = from_np_dtype(array.dtype)
        if datatype != self._datatype:
            raise InferenceError(
                f"{self.label}: expected an array of datatype {self._datatype}, got {datatype}"
            )
        if tuple(self._shape) != array.shape:
            raise InferenceError(
                f"{self.label}: expected an array of shape {list(self._shape)}, "
                f"got {list(array.shape)}"
            )

    def _json_array(self, array: NDArray[Any]) -> NDArray[Any]:
        # A flat copy that can be written as JSON.
        if self._datatype != "BYTES":
            return array.flatten()
        texts = np.empty(array.size, dtype=np.object_)
        texts[:] = self._texts(array)
        return texts

    def _texts(self, array: NDArray[Any]) -> list[str]:
        try:
            return decode_texts(array)
        except UnicodeDecodeError as error:
            raise InferenceError(
                f"{self.label}: BYTES that are not UTF-8 cannot be sent as JSON, "
                f"send them as binary data ({error})"
            ) from error

    def _json_list(self, as_given: bool) -> list[Any]:
        # Bytes are no JSON, so BYTES always pass through the array.
        if as_given and isinstance(self._data, list) and self._datatype != "BYTES":
            return self._data
        array = self.as_numpy().ravel()
        if self._datatype == "BYTES":
            return self._texts(array)
        values: list[Any] = array.tolist()
        return values

    def _binary(self) -> RawData:
        if self._raw_data is not None:
            return self._raw_data
        return _raw_bytes(self.as_numpy(), self._datatype)


class InferInput(Tensor):
    """An input tensor.

    Args:
        name: The name of the input.
        shape: The length of each axis.
        datatype: BOOL, INT8 to INT64, UINT8 to UINT64, FP16, FP32, FP64 or BYTES, in any case.
        data: A list, flat in row-major order or nested, or an array. Nothing is checked before
            the content is asked for.
        parameters: Further parameters of this input.
    """

    __slots__ = ()

    _kind = "input"


class InferOutput(Tensor):
    """An output tensor.

    Args:
        name: The name of the output.
        shape: The length of each axis.
        datatype: BOOL, INT8 to INT64, UINT8 to UINT64, FP16, FP32, FP64 or BYTES, in any case.
        data: A list, flat in row-major order or nested, or an array. Nothing is checked before
            the content is asked for.
        parameters: Further parameters of this output.
    """

    __slots__ = ()

    _kind = "output"


class RequestedOutput:
    """An output that the client asks for.

    Args:
        name: The name of the output.
        parameters: How to send it, for example `{"binary_data": True}`.
    """

    __slots__ = ("name", "parameters")

    def __init__(self, name: str, parameters: Parameters | None = None) -> None:
        self.name = name
        self.parameters = parameters

    @property
    def binary_data(self) -> bool | None:
        """Whether to send the output in binary form; None if the request does not say."""
        return self.parameters.get("binary_data") if self.parameters else None

    def to_dict(self) -> dict[str, Any]:
        """Give the name, and the parameters if there are any."""
        entry: dict[str, Any] = {"name": self.name}
        if self.parameters:
            entry["parameters"] = self.parameters
        return entry

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RequestedOutput):
            return NotImplemented
        return self.name == other.name and (self.parameters or {}) == (other.parameters or {})

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RequestedOutput(name={self.name!r}, parameters={self.parameters!r})"


def _shaped(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if array.shape == shape:
        return array
    # numpy would work out an axis of -1 by itself.
    if min(shape, default=0) < 0:
        raise ValueError(shape)
    return array.reshape(shape)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.array_equal(first, second)
    try:
        return bool(first == second)
    except ValueError:  # arrays within a list or a dict
        return False


def _content(tensor: Tensor) -> Any:
    try:
        return tensor.as_numpy()
    except InferenceServerError:
        return tensor._data if tensor._raw_data is None else tensor._raw_data


def _wire_dtype(datatype: str) -> np.dtype[Any]:
    # "The byte order of the binary data is little-endian."
    if datatype not in NUMPY_DTYPES:
        raise InvalidInput(f"unknown datatype {datatype!r}, expected {', '.join(NUMPY_DTYPES)}")
    return NUMPY_DTYPES[datatype].newbyteorder("<")


def _raw_bytes(array: NDArray[Any], datatype: str) -> bytes:
    if datatype == "BYTES":
        return encode_bytes_tensor(array_from_values(array, datatype))
    return array.astype(_wire_dtype(datatype), copy=False).tobytes()


def _without_binary_size(parameters: Parameters) -> Parameters:
    return {key: value for key, value in parameters.items() if key != BINARY_DATA_SIZE}
