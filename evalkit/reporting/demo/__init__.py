"""The demo page: point at a patch of a photograph and see what an encoder takes for the same.

photos.py reads and refuses files, looker.py keeps encoders and tokens, answers.py says what was found, drawing.py draws it:
plain functions, without gradio. page.py lays them out for a browser, server.py serves the page to this machine.

The arithmetic is that of `evalkit show`: `runners.prompt.similarity`, `search.ranked`, `metrics.maps`.
"""
