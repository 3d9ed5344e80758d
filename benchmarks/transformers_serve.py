"""`python -m benchmarks.transformers_serve --model_dir DIR`: the peer, `transformers serve`.

Its own command takes other flags than those by which the benchmarks start a server.
"""

import argparse

from transformers.cli.serve import Serve

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_dir", required=True)
    parser.add_argument("--http_port", type=int, required=True)
    parser.add_argument("--grpc_port", type=int, help="it has none")
    args = parser.parse_args()
    Serve(args.model_dir, host="127.0.0.1", port=args.http_port, device="cpu", dtype="float32")
