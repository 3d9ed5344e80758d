"""`python -m tfserver --model_dir DIR --model_name NAME`."""

from kserve.main import run

if __name__ == "__main__":
    run("tfserver.model:TensorFlowModel")
