"""`lastword bench peers`: lastword beside other libraries."""
