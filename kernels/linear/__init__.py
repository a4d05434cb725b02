"""Linear layers: unquantised, int8 and fp8."""
