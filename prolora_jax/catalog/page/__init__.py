"""The page about a catalog: one HTML file, nothing from the network.

figures.py: Pictures of the page: rectangles and words with places, no HTML.
words.py: Reasons of refusals in plain words, and what a person may decide about them.
facts.py: What the page says, from records: numbers, decisions, rows. No HTML here.
render.py: The page as HTML: one file with its style, its program and its rows in it.
"""
