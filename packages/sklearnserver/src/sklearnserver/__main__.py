"""`python -m sklearnserver --model_dir DIR --model_name NAME`."""

from kserve.main import run
from sklearnserver.model import SKLearnModel

if __name__ == "__main__":
    run(SKLearnModel)
