"""The command line, the wiring of processes, embedded services, observability and the live page."""
