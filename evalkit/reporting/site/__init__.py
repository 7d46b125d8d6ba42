"""A report as a folder of plain HTML pages: a leaderboard, a page per encoder, a page per recipe, and pictures.

Everything a page needs lies beside it (one style sheet, one script, PNG files), so that the folder opens from disk, on a
phone, and without a network.
"""
