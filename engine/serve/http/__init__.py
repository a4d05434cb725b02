"""The HTTP side of the server: routes, keys, the log of requests, connections and signals."""
