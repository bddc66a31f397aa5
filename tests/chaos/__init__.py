"""The join under every fault at once, on real Kafka: `python -m tests.chaos`, or `make chaos`."""
