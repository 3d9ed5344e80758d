"""Trains a small net on the iris data, and writes it to model/ as TensorFlow saves models.

It has two signatures: `serving_default` gives species and odds, `logits` what they are made of.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_iris

SPECIES = ("setosa", "versicolor", "virginica")
N_STEPS = 300

FLOWERS = tf.TensorSpec([None, 4], tf.float32, name="flowers")


class Net(tf.Module):
    """Two layers, and the scaling of what comes in.

    Args:
        flowers: Rows of sepal length and width, petal length and width in cm.
    """

    def __init__(self, flowers: np.ndarray) -> None:
        super().__init__()
        random = np.random.default_rng(7)
        self.mean, self.scale = tf.constant(flowers.mean(0)), tf.constant(flowers.std(0))
        self.layers = [
            tf.Variable(random.normal(0, 0.5, shape).astype(np.float32))
            for shape in ((4, 8), (8, 3))
        ]
        self.species = tf.constant(SPECIES)

    @tf.function(input_signature=[FLOWERS])
    def logits(self, flowers: tf.Tensor) -> Mapping[str, tf.Tensor]:
        """Give a number for each species, the largest for the likeliest."""
        hidden = tf.tanh((flowers - self.mean) / self.scale @ self.layers[0])
        return {"logits": hidden @ self.layers[1]}

    @tf.function(input_signature=[FLOWERS])
    def classify(self, flowers: tf.Tensor) -> Mapping[str, tf.Tensor]:
        """Give the likeliest species, and the odds of all."""
        logits = self.logits(flowers)["logits"]
        return {
            "species": tf.gather(self.species, tf.argmax(logits, 1)),
            "odds": tf.nn.softmax(logits),
        }


def train() -> Net:
    """Train a net by gradient descent on all flowers."""
    flowers, labels = load_iris(return_X_y=True)
    flowers = flowers.astype(np.float32)
    net = Net(flowers)
    for _ in range(N_STEPS):
        with tf.GradientTape() as tape:
            logits = net.logits(flowers)["logits"]
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        for layer, gradient in zip(net.layers, tape.gradient(loss, net.layers), strict=True):
            layer.assign_sub(0.5 * gradient)
    return net


def main(model_dir: Path) -> None:
    """Write the SavedModel, as version 1."""
    net = train()
    signatures = {"serving_default": net.classify, "logits": net.logits}
    tf.saved_model.save(net, str(model_dir / "1"), signatures)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "model")
