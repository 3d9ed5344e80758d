"""TensorFlow is loaded as the server loads it, before any test imports it."""

from tfserver import runtime
from tfserver.settings import Settings

runtime.start(Settings(intra_op_threads=1, inter_op_threads=1))
