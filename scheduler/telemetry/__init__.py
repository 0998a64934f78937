"""What looks on: metrics and traces. Each in an extra; the core imports none of it."""
