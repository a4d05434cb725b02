"""`lastword bench peers`: compare lastword with other libraries."""
