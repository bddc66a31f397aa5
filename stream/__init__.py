"""Events become labelled examples: schema, join, label policies, logs and workers."""
