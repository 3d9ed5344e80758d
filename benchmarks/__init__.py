"""Load, servers and figures: what the benchmarks, `scripts/overload` and `scripts/soak` share."""
