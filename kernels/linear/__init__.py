"""Matmuls: plain, in int8 and in fp8."""
