"""The whole system under one failure after the other, with users who check every answer: `python -m tests.drills`."""
