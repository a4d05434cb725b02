"""The protocols that the server speaks: for each, the models of its bodies and the form of its answers."""
