"""The stages of freshness and the buckets it is counted in: names for those who show it and load no model."""

STAGES = ("joined", "trained", "published", "applied", "served")
"""What ends each stage; it begins where the one before ended, the first with the action itself."""
BOUNDS_MS = (
    *(5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 150.0, 200.0, 250.0, 300.0, 400.0, 500.0, 600.0, 700.0, 850.0, 1_000.0),
    *(1_250.0, 1_500.0, 2_000.0, 3_000.0, 5_000.0, 10_000.0, 30_000.0, 60_000.0, 300_000.0),
)
"""Upper ends of the freshness buckets, finest around half a second and one second; one more is open-ended."""
