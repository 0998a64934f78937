"""How fast it is: beside other queues, and beside what Redis can do at all. `python -m benchmarks --help`."""
