"""New models from models: recipes, merge methods, conversion, bags."""
