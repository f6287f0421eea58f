"""Base models as data: names, shapes, published configurations."""
