"""The HTTP side of the server: routes, what surrounds a request, keys, connections and signals."""
