"""Redis servers: connections, sentinels, and the server that the process starts for itself."""
