"""Small mistakes in the queue's Lua scripts: each has to fail a contract test. `make mutate` runs it."""
