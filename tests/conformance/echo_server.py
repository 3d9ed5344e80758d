"""A server of a `TensorModel` that gives its tensors back; a script that the suite starts."""

from kserve import ModelServer
from kserve.model import PredictOptions, TensorModel
from kserve.signature import Tensors


class Echo(TensorModel):
    """Takes any tensors and gives them back; says nothing of them in its metadata."""

    platform = "echo"

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        """Give the tensors back; the answer holds the requested ones alone."""
        return tensors


if __name__ == "__main__":
    ModelServer().start([Echo("echo")])
