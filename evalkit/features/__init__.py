"""Features: views of images, extraction through a frozen encoder, and the store that remembers the result.

    view.py     how an image becomes a square input
    key.py      what a stored result depends on, as one digest
    shards.py   one file of the store: checksum inside, written atomically
    store.py    the folder of entries: list, verify, prune
    stored.py   reading: rows from mapped shards, or from memory
    decoding.py worker processes that turn samples into uint8 batches
    extract.py  encoder x dataset -> features
    stream.py   augmented batches for online training

Nothing is imported here, so that listing the store needs no torch.
"""
