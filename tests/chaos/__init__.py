"""Minutes of random faults on real processes, and an auditor at the end: `make chaos`."""
