"""`python -m hfserver --model_dir DIR | --model_id OWNER/NAME --model_name NAME`."""

from kserve.main import run

if __name__ == "__main__":
    run("hfserver.server:HuggingFaceServer")
