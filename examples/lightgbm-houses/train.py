"""Trains a regression on invented houses, some columns of them text, and writes it to model/."""

import sys
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd

CITIES = ("Bruges", "Ghent", "Ostend")


def houses(n_rows: int = 500) -> tuple[pd.DataFrame, pd.Series]:
    """Give houses, and their prices in thousands of euros."""
    random = np.random.default_rng(7)
    frame = pd.DataFrame(
        {
            "area": random.uniform(40, 200, n_rows).round(),
            "rooms": random.integers(1, 7, n_rows),
            "city": pd.Categorical(random.choice(CITIES, n_rows), CITIES),
        }
    )
    by_city = frame["city"].map({"Bruges": 3.0, "Ghent": 3.5, "Ostend": 2.5}).astype(float)
    return frame, frame["area"] * by_city + 10 * frame["rooms"]


def main(model_dir: Path) -> None:
    """Write `model.txt`: area in square metres, rooms and city to a price."""
    frame, prices = houses()
    parameters = {"num_leaves": 7, "num_threads": 1, "seed": 7, "verbosity": -1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(frame, prices), 40)
    model_dir.mkdir(exist_ok=True)
    booster.save_model(model_dir / "model.txt")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "model")
