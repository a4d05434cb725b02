"""The protocols that the server speaks: for each, what a body may hold and how vectors and errors are written."""
