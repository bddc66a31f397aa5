"""Examples become steps, steps become snapshots: encoding, HiNet, trainer, checkpoint, store."""
