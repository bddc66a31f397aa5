"""Named scenarios of the join: YAML files that the in-memory log and a real Kafka play alike."""
