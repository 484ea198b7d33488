"""The agent beside other model servers: see `python -m benchmarks.peers --help`."""
